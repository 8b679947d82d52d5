"""A training run, from a config to a model file with scores and pictures, in a folder of its own.

    config.yaml  log.jsonl  evaluations.jsonl  tensorboard/  checkpoints/  model.safetensors
    scores.json  losses.png  predictions-<set>.png  features.png

Several seeds have such a folder each, `seed-<n>`, and one scores.json over all.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.checkpoint import Progress, load_checkpoint, save_checkpoint
from train.config import TrainConfig, read_config, to_yaml
from train.data import Split, load_split
from train.evaluation import DIMENSIONS, Evaluation, evaluate, one_line, results_of
from train.feed import Feed
from train.groups import group, threshold_radius
from train.log import RunLog, write_json
from train.loop import DivergedError, Step, make_players, training_steps
from train.parallel import Team, join_team
from train.plots import plot_features, plot_losses, plot_predictions
from train.steps import Players
from train.stop import Clock, stop_asked
from vafer.errors import UsageError
from vafer.model import ModelCard, save_model

TOO_MANY_SKIPPED = 0.2
MAY_CHANGE = ("device", "seeds", "log_every", "evaluate_every", "checkpoint_every")


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
    anything is done, DivergedError when a loss is not finite, and KeyboardInterrupt.
    """
    torch.set_flush_denormal(True)  # a network that dies computes with them, ten times slower
    with join_team(config.device) as (team, device):
        if config.batch_size % team.size:
            raise UsageError(
                f"batch_size is {config.batch_size}: expected a multiple of {team.size} processes"
            )
        quiet = on_notice if team.leads else lambda text: None
        _check_folder(config, out, resume=resume)
        if team.leads and split is None:  # the others then find its crops in the cache
            split = load_split(config, _crops_notice(quiet))
        team.wait()
        split = split or load_split(config)
        feeds = _Feeds(split, config, device)
        quiet(
            f"training on {len(feeds.train)} faces, {len(feeds.labels) // config.batch_size} "
            f"iterations an epoch; held out: "
            f"{', '.join(f'{s.name} ({len(s)} faces)' for s in split.held_out)}; on {device}"
            f"{f', {team.size} processes' if team.size > 1 else ''}"
        )
        if team.leads:
            out.mkdir(parents=True, exist_ok=True)
            (out / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        models, found = {}, {}
        for seed in config.seeds:
            folder = out if len(config.seeds) == 1 else out / f"seed-{seed}"
            run = _Run(config, seed, folder, split, feeds, team, on_report, quiet)
            found[seed] = run.go(resume=resume)
            models[seed] = folder / "model.safetensors"
        outcome = Outcome(out, models, found)
        if team.leads and len(config.seeds) > 1:
            by_seed = {str(seed): result for seed, result in found.items()}
            write_json(out / "scores.json", {"seeds": by_seed, "over_seeds": outcome.summary()})
        return outcome


class _Feeds:
    """The feeds of a split, opened once for all seeds."""

    def __init__(self, split: Split, config: TrainConfig, device: torch.device) -> None:
        self.train = Feed(split.train, device, config.data.in_memory)
        self.labels = np.concatenate([faces.labels for faces in split.train])
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
    on_report: Callable[[Report], None]
    on_notice: Callable[[str], None]

    def go(self, *, resume: bool) -> dict[str, Any]:
        """Train to the end; returns the scores by held-out set."""
        config, checkpoint = self.config, self.out / "checkpoints" / "last.pt"
        if resume and (self.out / "scores.json").is_file():  # it is written last
            finished = json.loads((self.out / "scores.json").read_text())
            if finished["iterations"] == config.iterations:
                self.on_notice(f"seed {self.seed}: finished by an earlier run")
                return finished["sets"]
        players = make_players(config, self.seed, self.feeds.train.device, self.team)
        progress = Progress()
        if resume and checkpoint.is_file():
            progress = load_checkpoint(checkpoint, players)
            self.on_notice(f"seed {self.seed}: going on after iteration {progress.iteration}")
        steps = training_steps(
            players, self.feeds.train, self.feeds.labels, config, self.seed, progress
        )
        evaluations: list[Evaluation] = []
        with RunLog(self.out, progress.iteration, writes=self.team.leads) as log:
            clock = Clock(progress.iteration)
            with stop_asked(self.team) as is_stop_asked:
                try:
                    for step in steps:
                        is_last = step.number == config.iterations
                        if step.number % config.log_every == 0 or is_last:
                            entry = _entry(step, progress)  # waits for the device
                            entry["images_per_s"] = clock.rate(step.number, config.batch_size)
                            log.step(entry)
                            self.on_report(Report(self.seed, config.iterations, entry))
                        if step.number % config.evaluate_every == 0 or is_last:
                            with clock.paused():
                                evaluations = evaluate(players, self.feeds.held_out, config)
                                self._take_note(evaluations, players, progress, log)
                        stops = is_stop_asked(step.number % config.log_every == 0)
                        if step.number % config.checkpoint_every == 0 or is_last or stops:
                            with clock.paused():
                                self._checkpoint(checkpoint, players, progress)
                        if stops and not is_last:
                            raise KeyboardInterrupt
                except DivergedError as error:
                    log.step({"step": error.step, error.loss: str(error.value)})
                    raise error.after(checkpoint, self.out / "log.jsonl") from None
            if not evaluations:  # it was stopped between its last iteration and its scores
                evaluations = evaluate(players, self.feeds.held_out, config)
            self._finish(evaluations, players, progress, log)
        return results_of(evaluations)

    def _take_note(
        self, evaluations: list[Evaluation], players: Players, progress: Progress, log: "RunLog"
    ) -> None:
        """Log and show scores; keep the model whose mean CCC on the first held-out set is highest.

        Chosen on what it is scored on, that one looks better than it is: the run's model is the
        last.
        """
        result = results_of(evaluations)
        log.evaluation(progress.iteration, result)
        self.on_notice(f"iteration {progress.iteration}: {one_line(result)}")
        first = next(iter(result.values()))
        values = [first[dimension]["ccc"] for dimension in DIMENSIONS]
        if None not in values and np.mean(values) > progress.best:
            progress.best, progress.best_iteration = float(np.mean(values)), progress.iteration
            if self.team.leads:
                path = self.out / "checkpoints" / "best.safetensors"
                path.parent.mkdir(exist_ok=True)
                save_model(path, players.net, self._card(progress, result))

    def _checkpoint(self, path: Path, players: Players, progress: Progress) -> None:
        if self.team.leads:
            save_checkpoint(path, players, progress)

    def _card(self, progress: Progress, result: dict[str, Any]) -> ModelCard:
        subjects = {s for faces in self.split.train for s in faces.subjects if s is not None}
        procedure = json.loads(json.dumps(asdict(self.config), default=str))
        for private in ("root", "cache", "detector"):
            del procedure["data"][private]
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
                "subjects_sha256": sorted(hash_subject(s) for s in subjects),
            },
            metrics=result,
        )

    def _finish(
        self, evaluations: list[Evaluation], players: Players, progress: Progress, log: "RunLog"
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
        save_model(self.out / "model.safetensors", players.net, self._card(progress, result))
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
        features = {"encoder features h": chosen.features}
        if players.critic is not None:
            h = torch.from_numpy(chosen.features).to(self.feeds.train.device)
            with torch.inference_mode():
                features["critic features z"] = players.critic.eval()(h).cpu().numpy()
        labels = chosen.faces.labels
        plot_features(
            features,
            self.out / "features.png",
            is_strong=group(labels, threshold_radius(labels, self.config.grouping)).is_strong,
            subjects=chosen.faces.subjects,
        )


def _check_folder(config: TrainConfig, out: Path, *, resume: bool) -> None:
    """Refuse a folder that another run is in, or that holds one of another config."""
    path = out / "config.yaml"
    if not path.is_file():
        return
    if not resume:
        raise UsageError(
            f"{out} holds a run already: --resume goes on with it, or take another --out"
        )
    before, now = asdict(read_config(path)), asdict(config)
    for name in MAY_CHANGE:
        before.pop(name), now.pop(name)
    if config.optimiser.schedule == "step":  # where a run ends then changes nothing before its end
        first, wanted = before.pop("iterations"), now.pop("iterations")
        if wanted < first:
            raise UsageError(f"iterations was {first}, is {wanted}: expected as many or more")
    different = sorted(_differences(before, now))
    if different:
        raise UsageError(f"{out} holds a run of another config: {'; '.join(different)}")


def _differences(before: dict[str, Any], now: dict[str, Any], at: str = "") -> Iterator[str]:
    for key, value in before.items():
        if isinstance(value, dict):
            yield from _differences(value, now[key], f"{at}{key}.")
        elif value != now[key]:
            yield f"{at}{key} was {value}, is {now[key]}"


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


def hash_subject(subject: str) -> str:
    """How a model file names a person it was trained on, without naming them."""
    return hashlib.sha256(subject.encode()).hexdigest()[:16]


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
