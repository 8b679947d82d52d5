"""A training run, from a config to a model file with scores and pictures, in a folder of its own.

    config.yaml  data.json  log.jsonl  evaluations.jsonl  tensorboard/  checkpoints/
    model.safetensors  scores.json  losses.png  predictions-<set>.png  features.png

Several seeds have such a folder each, `seed-<n>`, and one scores.json over all.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.checkpoint import Progress, load_checkpoint, save_checkpoint
from train.config import TrainConfig, flat, read_config, to_yaml
from train.data import GRADED, Split
from train.evaluation import Evaluation, evaluate, one_line, results_of
from train.feed import Feed
from train.groups import group, threshold_radius
from train.log import RunLog
from train.loop import (
    DivergedError,
    Step,
    encode,
    make_players,
    raise_unless_finite,
    training_steps,
)
from train.parallel import Team, join_team
from train.plots import plot_losses
from train.sets import load_split
from train.steps import Players
from train.stop import Clock, stop_asked
from vafer.datasets.splits import hash_name
from vafer.errors import OutputError, UsageError
from vafer.files import write_json, write_text
from vafer.lock import own_folder
from vafer.metrics import DIMENSIONS
from vafer.model import ModelCard, save_model
from vafer.plots import plot_features, plot_predictions
from vafer.plots.features import MOST_FACES
from vafer.store import OF_A_RUN

DATA = "data.json"  # what a run was begun with
TOO_MANY_SKIPPED = 0.2
MAY_CHANGE = (
    "device", "compile", "log_every", "evaluate_every", "checkpoint_every",
    "data.root", "data.cache", "data.detector", "data.in_memory",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Report:
    """A logged step. entry: its object in log.jsonl. total: iterations of the run."""

    seed: int
    total: int
    entry: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run. models: one file a seed. scores: by seed, held-out set and dimension."""

    out: Path
    models: dict[int, Path]
    scores: dict[int, dict[str, Any]]

    def summary(self) -> dict[str, Any]:
        """Mean and standard deviation (ddof = 1) over the seeds, by set, dimension and score.

        A score that is undefined with any seed is null, and so is the deviation of one seed.
        """
        sets = next(iter(self.scores.values()))
        return {
            name: {
                dimension: {
                    score: _mean_and_sd([s[name][dimension][score] for s in self.scores.values()])
                    for score in result[dimension]
                }
                for dimension in DIMENSIONS
            }
            for name, result in sets.items()
        }


def train(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    split: Split | None = None,
    on_report: Callable[[Report], None] = lambda report: None,
    on_notice: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Train as `config` says, with each of its seeds; in all processes that torchrun started.

    resume: go on in `out` where an earlier run stopped, exactly. split: faces other than those of
    config.data. A first Ctrl-C stops after the iteration and keeps it. Raises UsageError before
    anything is done, DivergedError when a loss is not finite, OutputError, and KeyboardInterrupt.
    """
    with _denormals_flushed(), join_team(config.device) as (team, device):
        tell = on_notice if team.leads else lambda text: None
        if config.batch_size % team.size:
            raise UsageError(
                f"batch_size is {config.batch_size}: expected a multiple of {team.size} processes"
            )
        with _own_folder(config, out, tell, resume=resume, team=team):
            with _disk_errors(out, is_begun=False):
                if split is None:  # the leader makes the crops; the others find them in the cache
                    split = team.led(lambda: load_split(config, _crops_notice(tell), tell, device))
                split = split or load_split(config, device=device)
                feeds = _Feeds(split, config, device)
                make_players(config, config.seeds[0], device, team)  # what it refuses, refuse now
                for notice in _notices(config, split, feeds, device, team):
                    tell(notice)
                team.led(partial(_begin, config, out, split, team, tell, resume=resume))
            models, found = {}, {}
            # Only now is there anything to keep.
            with stop_asked(team) as stops, _disk_errors(out, is_begun=True):
                for seed in config.seeds:
                    folder = out if len(config.seeds) == 1 else out / f"seed-{seed}"
                    run = _Run(config, seed, folder, split, feeds, team, stops, on_report, tell)
                    found[seed] = run.go(resume=resume)
                    models[seed] = folder / OF_A_RUN
                    if seed != config.seeds[-1] and stops(0):
                        raise KeyboardInterrupt
            outcome = Outcome(out, models, found)
            if team.leads and len(config.seeds) > 1:
                by_seed = {str(seed): result for seed, result in found.items()}
                write_json(out / "scores.json", {"seeds": by_seed, "over_seeds": outcome.summary()})
            return outcome


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """A network that dies computes with them, ten times slower; others of this process may care."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def _disk_errors(out: Path, *, is_begun: bool) -> Iterator[None]:
    """Turn the file system's errors into our own, naming the file, or else the run folder."""
    try:
        yield
    except OSError as error:
        found = f"{error.filename or out} cannot be read or written: {error.strerror or error}"
        if not is_begun:
            raise UsageError(f"{found}. Nothing was trained") from error
        raise OutputError(
            f"{found}. What is finished is kept: the same command with --resume goes on"
        ) from error


@contextmanager
def _own_folder(
    config: TrainConfig, out: Path, on_notice: Callable[[str], None], *, resume: bool, team: Team
) -> Iterator[None]:
    """Within it, the run folder is this run's alone; if nothing came into it, it goes away again.

    Raises UsageError where it holds a run already, or one of another config, or another one writes.
    """
    with ExitStack() as stack:

        def open_it() -> None:
            stack.enter_context(own_folder(out))
            _check_folder(config, out, on_notice, resume=resume)

        team.led(open_it)
        yield


def _notices(
    config: TrainConfig, split: Split, feeds: "_Feeds", device: torch.device, team: Team
) -> Iterator[str]:
    """What a run is about to do, and what is to be known of it."""
    yield to_yaml(config)
    yield (
        f"training on {len(feeds.train)} faces, {len(feeds.labels) // config.batch_size} "
        f"iterations an epoch; held out: "
        f"{', '.join(f'{s.name} ({len(s)} faces)' for s in split.held_out)}; on {device}"
        f"{f', {team.size} processes' if team.size > 1 else ''}"
    )
    yield from config.unused()
    if config.optimiser.warmup > config.iterations:
        yield (
            f"optimiser.warmup is {config.optimiser.warmup}: in {config.iterations} iterations the "
            "rate never reaches optimiser.lr"
        )
    for faces in split.held_out:
        if any(subject is None for subject in faces.subjects):
            yield f"{faces.name} names no persons: some of them may be trained on too"


class _Feeds:
    """The feeds of a split, opened once for all seeds."""

    def __init__(self, split: Split, config: TrainConfig, device: torch.device) -> None:
        n_faces = sum(len(faces) for faces in split.train)
        if n_faces < config.batch_size:
            raise UsageError(
                f"{n_faces} faces to train on: expected at least a batch of {config.batch_size}"
            )
        self.train = Feed(split.train, device, config.data.in_memory)
        self.labels = np.concatenate([faces.labels for faces in split.train])
        shares = [faces.posteriors for faces in split.train if faces.posteriors is not None]
        self.posteriors = np.concatenate(shares) if len(shares) == len(split.train) else None
        self.held_out = [
            (faces, Feed([faces], device, config.data.in_memory)) for faces in split.held_out
        ]


@dataclass(slots=True)
class _Run:
    """One seed's run in its folder."""

    config: TrainConfig
    seed: int
    out: Path
    split: Split
    feeds: _Feeds
    team: Team
    stops: Callable[[int], bool]
    on_report: Callable[[Report], None]
    on_notice: Callable[[str], None]

    def go(self, *, resume: bool) -> dict[str, Any]:
        """Train to the end; returns the scores by held-out set."""
        config, checkpoint = self.config, self._checkpoint
        finished = self._finished_before() if resume else None
        players = make_players(config, self.seed, self.feeds.train.device, self.team)
        progress = Progress(self.seed)
        if resume and finished is None and checkpoint.exists():
            progress = load_checkpoint(checkpoint, players, seed=self.seed)
            self.on_notice(f"seed {self.seed}: going on after iteration {progress.iteration}")
        elif resume and finished is None and (self.out / "log.jsonl").is_file():
            self.on_notice(f"seed {self.seed}: {self.out} has no checkpoint: it starts anew")
        if not self.team.agrees((finished is None, progress.iteration)):
            raise UsageError(
                f"{self.out}: not all processes find the same state of the run in it: expected a "
                "folder that all of them share"
            )
        if finished is not None:
            return finished
        evaluations: list[Evaluation] = []
        with closing(RunLog(self.out, progress.iteration, writes=self.team.leads)) as log:
            try:
                for step, is_last in self._steps(players, progress, log):
                    stops = self.stops(step.number)
                    scores_now = step.number % config.evaluate_every == 0 or is_last
                    keeps_now = step.number % config.checkpoint_every == 0 or is_last or stops
                    if scores_now or keeps_now:
                        raise_unless_finite(players, step.number)
                    if scores_now:
                        evaluations = evaluate(players, self.feeds.held_out, config)
                        self._take_note(evaluations, players, progress, log)
                    if keeps_now and self.team.leads:
                        save_checkpoint(checkpoint, players, progress)
                    if stops and not is_last:
                        raise KeyboardInterrupt
            except DivergedError as error:
                log.step({"step": error.step, error.loss: str(error.value)})
                raise error.after(checkpoint, self.out / "log.jsonl") from None
            if not evaluations:  # it was stopped between its last iteration and its scores
                evaluations = evaluate(players, self.feeds.held_out, config)
            self._finish(evaluations, players, progress, log)
        return results_of(evaluations)

    @property
    def _checkpoint(self) -> Path:
        return self.out / "checkpoints" / "last.pt"

    def _finished_before(self) -> dict[str, Any] | None:
        """The scores of an earlier run that came to the end; they are written last.

        None as well where its model is gone and can be made again of the checkpoint.
        """
        path, model = self.out / "scores.json", self.out / OF_A_RUN
        found = json.loads(path.read_text()) if path.is_file() else {}
        if found.get("iterations") != self.config.iterations:
            return None
        told = f"seed {self.seed}: finished by an earlier run"
        if model.is_file():
            self.on_notice(told)
        elif self._checkpoint.exists():
            self.on_notice(f"{told}, but {model} is gone: it is made again of the checkpoint")
            return None
        else:
            self.on_notice(f"{told}, but {model} is gone, and so is the checkpoint to make it of")
        return found["sets"]

    def _steps(
        self, players: Players, progress: Progress, log: RunLog
    ) -> Iterator[tuple[Step, bool]]:
        """Train, log and report; each step, and whether it is the last."""
        config = self.config
        clock = Clock(progress.iteration)
        for step in training_steps(
            players,
            self.feeds.train,
            self.feeds.labels,
            config,
            self.seed,
            progress,
            self.feeds.posteriors,
        ):
            is_last = step.number == config.iterations
            if step.number % config.log_every == 0 or is_last:
                entry = _entry(step, progress)  # waits for the device
                entry["images_per_s"] = clock.rate(step.number, config.batch_size)
                log.step(entry)
                self.on_report(Report(self.seed, config.iterations, entry))
            with clock.paused():
                yield step, is_last

    def _take_note(
        self, evaluations: list[Evaluation], players: Players, progress: Progress, log: RunLog
    ) -> None:
        """Log and show scores; keep the model whose mean CCC on the first held-out set is highest.

        Chosen on what it is scored on, that one looks better than it is: the run's model is the
        last.
        """
        result = results_of(evaluations)
        log.evaluation(progress.iteration, result)
        of_seed = f"seed {self.seed}, " if len(self.config.seeds) > 1 else ""
        self.on_notice(f"{of_seed}iteration {progress.iteration}: {one_line(result)}")
        first = next(iter(result.values()))
        values = [first[dimension]["ccc"] for dimension in DIMENSIONS]
        if None not in values and np.mean(values) > progress.best:
            progress.best, progress.best_iteration = float(np.mean(values)), progress.iteration
            if self.team.leads:
                path = self.out / "checkpoints" / "best.safetensors"
                path.parent.mkdir(exist_ok=True)
                save_model(path, players.net, self._card(progress, result))

    def _card(self, progress: Progress, result: dict[str, Any]) -> ModelCard:
        subjects = {s for faces in self.split.train for s in faces.subjects if s is not None}
        procedure = json.loads(json.dumps(asdict(self.config), default=str))
        for private in ("root", "cache", "detector", "assignment"):
            del procedure["data"][private]
        del procedure["model"]["pretrained"]
        return ModelCard(
            name=self.out.resolve().name,
            backbone=self.config.model.backbone,
            pool=self.config.pool,
            crop=self.config.crop,
            training={
                **self.split.facts,
                "procedure": procedure,
                "seed": self.seed,
                "iterations": progress.iteration,
                "subjects_sha256": sorted(hash_name(s) for s in subjects),
            },
            metrics=result,
        )

    def _finish(
        self, evaluations: list[Evaluation], players: Players, progress: Progress, log: RunLog
    ) -> None:
        n_wanted = progress.critic_steps + progress.skipped_steps
        skipped = progress.skipped_steps / n_wanted if n_wanted else 0.0
        if skipped > TOO_MANY_SKIPPED:
            self.on_notice(
                f"seed {self.seed}: the critic did not play in {skipped:.0%} of the iterations, "
                "for want of two strong and two weak faces: see grouping.values and grouping.scope"
            )
        if not self.team.leads:
            return
        result = results_of(evaluations)
        save_model(self.out / OF_A_RUN, players.net, self._card(progress, result))
        plot_losses(log.steps(), self.out / "losses.png", evaluations=log.evaluations())
        for evaluation in evaluations:
            name = evaluation.faces.name
            plot_predictions(
                evaluation.faces.labels,
                evaluation.predicted,
                self.out / f"predictions-{name}.png",
                scores={d: result[name][d] for d in DIMENSIONS},
                title=f"{name}, seed {self.seed}",
            )
        self._draw_features(evaluations, players)
        write_json(
            self.out / "scores.json",
            {
                "sets": result,
                "seed": self.seed,
                "iterations": progress.iteration,
                "critic_steps": progress.critic_steps,
                "skipped_steps": progress.skipped_steps,
                "best_iteration": progress.best_iteration,
            },
        )

    def _draw_features(self, evaluations: list[Evaluation], players: Players) -> None:
        """t-SNE of a held-out set, one with named subjects where there is one."""
        chosen = max(evaluations, key=lambda e: sum(s is not None for s in e.faces.subjects))
        feed = next(feed for faces, feed in self.feeds.held_out if faces is chosen.faces)
        rows = np.arange(len(feed))
        if len(feed) > MOST_FACES:
            rows = np.sort(np.random.default_rng(0).choice(len(feed), MOST_FACES, replace=False))
        features = {"encoder features h": encode(players, feed, rows, self.config)}
        if players.critic is not None:
            h = torch.from_numpy(features["encoder features h"]).to(feed.device)
            with torch.inference_mode():
                features["critic features z"] = players.critic.eval()(h).cpu().numpy()
        labels = chosen.faces.labels
        plot_features(
            features,
            self.out / "features.png",
            is_strong=group(labels, threshold_radius(labels, self.config.grouping)).is_strong[rows],
            subjects=chosen.faces.subjects[rows],
        )


def _check_folder(
    config: TrainConfig, out: Path, on_notice: Callable[[str], None], *, resume: bool
) -> None:
    """Refuse a folder that holds a run already, or one of another config."""
    path = out / "config.yaml"
    if not path.is_file():
        if resume:
            on_notice(f"{out} holds no run yet: it starts here")
        return
    if not resume:
        raise UsageError(
            f"{out} holds a run already: --resume goes on with it, or take another --out"
        )
    before, now = read_config(path), config
    may_change = {*MAY_CHANGE}
    if len(before.seeds) > 1 and len(now.seeds) > 1:  # each has a folder of its own
        may_change.add("seeds")
    if config.optimiser.schedule == "step":  # where a run ends then changes nothing before its end
        if now.iterations < before.iterations:
            raise UsageError(
                f"iterations was {before.iterations}, is {now.iterations}: expected as many or more"
            )
        may_change.add("iterations")
    was, is_now = flat(asdict(before)), flat(asdict(now))
    different = [
        f"{key} was {was[key]}, is {is_now[key]}"
        for key in was
        if was[key] != is_now[key] and key not in may_change
    ]
    if different:
        if config.optimiser.schedule == "cosine" and was["iterations"] != is_now["iterations"]:
            different.append("a cosine's rates depend on where it ends")
        raise UsageError(f"{out} holds a run of another config: {'; '.join(different)}")


def _begin(
    config: TrainConfig,
    out: Path,
    split: Split,
    team: Team,
    on_notice: Callable[[str], None],
    *,
    resume: bool,
) -> None:
    """Note in the run folder what a run is begun with, or see that it goes on with the same."""
    data = {
        "processes": team.size,
        "trained_on": {faces.name: faces.fingerprint() for faces in split.train},
        "held_out": {faces.name: faces.fingerprint() for faces in split.held_out},
    }
    goes_on = resume and (out / "config.yaml").is_file()
    has_data = goes_on and (out / DATA).is_file()
    if has_data:
        try:
            before = flat(json.loads((out / DATA).read_text()))
            _check_data(out, before, flat(data), on_notice)
        except (ValueError, KeyError, AttributeError) as error:
            raise UsageError(
                f"{out / DATA} is damaged ({error!r}), so which faces the run was begun with "
                "cannot be told: begin anew with another --out, or delete it if they are the same"
            ) from error
    elif goes_on:
        on_notice(f"{out} has no {DATA}: that the faces are those it began with cannot be told")
    write_text(out / "config.yaml", to_yaml(config))
    if not has_data:  # else it stays what the run was begun with
        write_json(out / DATA, data)
    if split.assignment is not None:
        write_json(out / "split.json", split.assignment)


def _check_data(
    out: Path, before: dict[str, Any], now: dict[str, Any], on_notice: Callable[[str], None]
) -> None:
    """Refuse to go on with other faces, labels or persons than a run was begun with."""
    is_graded = {key: before[key] == now.get(key) for key in before if key.endswith(GRADED)}
    n_processes, n_now = before["processes"], now["processes"]
    of_sets = {*before, *now} - {"processes", *is_graded}
    found = {key.rpartition(".")[0] for key in of_sets if before.get(key) != now.get(key)}
    if found:
        counts = [
            (name, *(f"{of.get(f'{name}.faces', 0):,}" for of in (before, now)))
            for name in sorted(found)
        ]
        told = "; ".join(
            f"{name} {was} faces against {n}" if was != n else f"{name} as many, but others"
            for name, was, n in counts
        )
        raise UsageError(
            f"{out} was begun with other faces, there against here: {told}. Expected the same "
            "pictures, labels and persons, and crops by the same detector: put them back, or begin "
            "anew with another --out"
        )
    if n_processes != n_now:
        on_notice(
            f"the number of processes was {n_processes}, is {n_now}: dropout draws otherwise, so "
            "this is not exactly the run that it would have been"
        )
    if not all(is_graded.values()):
        on_notice(
            "the graded labels are others than it began with, as where they were made anew on "
            "another device: this is not exactly the run that it would have been"
        )


def _entry(step: Step, progress: Progress) -> dict[str, Any]:
    """A step's object in log.jsonl."""
    losses = {name: value.item() for name, value in step.losses.items()}
    return {
        "step": step.number,
        **losses,
        "n_strong": step.groups.n_strong if step.groups else None,
        "n_weak": step.groups.n_weak if step.groups else None,
        "critic_steps": progress.critic_steps,
        "skipped_steps": progress.skipped_steps,
        "lr": step.lr,
    }


def _crops_notice(on_notice: Callable[[str], None]) -> Callable[[str, int, int], None]:
    return lambda name, done, total: on_notice(f"crops of {name}: {done}/{total}")


def _mean_and_sd(values: list[float | None]) -> dict[str, float | None]:
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return {"mean": None, "sd": None}
    return {
        "mean": float(np.mean(known)),
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }
