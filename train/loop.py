"""The training loop: a generator of what happened in each iteration. Its consumer logs, saves."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from train.augment import crop_and_flip, middle, vary
from train.checkpoint import Progress
from train.config import OptimiserConfig, TrainConfig
from train.critics import make_critic
from train.draws import BatchDraws, Purpose, generator_of, seed_of
from train.feed import Feed
from train.groups import Groups, group, threshold_radius
from train.parallel import Team, synchronise_batch_norm
from train.pretrained import load_encoder
from train.sets import EXPRESSION_NORMS
from train.steps import Batch, Players, iterate
from vafer.errors import UsageError, VaferError
from vafer.model import AVNet


class DivergedError(VaferError):
    """A loss is no longer finite. step: the iteration, from 1. loss, value: which, and what."""

    def __init__(self, step: int, loss: str, value: float, advice: str = "") -> None:
        super().__init__(f"iteration {step}: {loss} is {value}{advice}")
        self.step, self.loss, self.value, self.advice = step, loss, value, advice

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:  # it may come from another process
        return DivergedError, (self.step, self.loss, self.value, self.advice)

    def after(self, checkpoint: Path, log: Path) -> "DivergedError":
        """The same, with what is left and what to do."""
        left = (
            f"{checkpoint} is the last good checkpoint" if checkpoint.is_file()
            else "it had no checkpoint yet"
        )  # fmt: skip
        advice = (
            f". The run stopped; {left}, and {log} shows what led to it. "
            "A new run may do with a lower optimiser.lr or, with a critic, a lower game.adv_weight"
        )
        return DivergedError(self.step, self.loss, self.value, advice)


@dataclass(frozen=True, slots=True)
class Step:
    """One iteration.

    number: from 1. losses: detached scalars on the device, by name (see `train.steps.iterate`).
    groups: of the global batch, None without a critic.
    """

    number: int
    losses: dict[str, torch.Tensor]
    groups: Groups | None
    lr: float


def make_players(config: TrainConfig, seed: int, device: torch.device, team: Team) -> Players:
    """Networks and optimisers of a run, initialised by its seed; the same on every process.

    PyTorch's own initialisation: with He's, large outputs die at the eight units before the last
    layer (after 220 steps of 128 faces at a rate of 3e-4: PCC .1 and .16, instead of .5 and .35).
    """
    torch.manual_seed(seed_of(seed, Purpose.WEIGHTS))
    net = AVNet(config.model.backbone, config.pool, dropout=config.model.dropout)
    if config.model.pretrained is not None:
        load_encoder(net, config.model.pretrained)
    adversary = make_critic(config, net.n_features)
    if team.size > 1:
        synchronise_batch_norm(net)
    net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    critic, objective = adversary or (None, None)
    reader = None
    if config.expression_weight and config.data.labels == "graded":
        reader = nn.Linear(net.n_features, len(EXPRESSION_NORMS)).to(device)
    moved = [*net.parameters(), *(reader.parameters() if reader else ())]
    optimisers = {"regression": _adam(moved, config.optimiser)}
    if critic is not None:
        critic.to(device)
        optimisers["critic"] = _adam(list(critic.parameters()), config.optimiser)
        once = replace(config.optimiser, weight_decay=0.0)  # the regression step decays them
        optimisers["adversarial"] = _adam(list(net.encoder.parameters()), once)
    if config.compile:
        net.encoder.compile(dynamic=True)
        net.regressor.compile()
    return Players(
        net,
        critic,
        objective,
        optimisers,
        team,
        config.precision == "bfloat16",
        reader,
        config.expression_weight,
    )


def training_steps(
    players: Players,
    feed: Feed,
    labels: np.ndarray,
    config: TrainConfig,
    seed: int,
    progress: Progress,
    posteriors: np.ndarray | None = None,
) -> Iterator[Step]:
    """Train from progress.iteration to config.iterations, keeping `progress`, yielding each step.

    labels: (N, 2), of the feed's crops. posteriors: (N, K), where expressions are read. Raises
    DivergedError when a loss is not finite: at once on a CPU; on a GPU, where looking means
    waiting, when it is logged, scored or kept. It names the first bad iteration in either case.
    """
    device, team = feed.device, players.team
    has_critic = players.critic is not None
    ahead, now = tee(plan_batches(labels, config, seed, progress.iteration, has_critic=has_critic))
    unseen: list[Step] = []
    for crops, plan in zip(feed.batches(p.indices[team.rows] for p in ahead), now, strict=True):
        number = progress.iteration + 1
        plays = plan.groups is not None and plan.groups.are_usable
        lr = _set_rates(players, config, progress.iteration)
        batch = Batch(
            images=network_input(_augmented(crops, config, seed, number, team), config),
            labels=torch.from_numpy(labels[plan.indices]).to(device, non_blocking=True),
            n_weak=plan.groups.n_weak if plan.groups is not None and plays else 0,
            epoch=plan.epoch,
            generator=generator_of(seed, Purpose.PAIRING, number),
            posteriors=None
            if posteriors is None
            else torch.from_numpy(posteriors[plan.indices]).to(device, non_blocking=True),
        )
        players.net.train()
        if players.critic is not None:
            players.critic.train()
        torch.manual_seed(seed_of(seed, Purpose.DROPOUT, number, team.rank))
        step = Step(number, iterate(players, batch), plan.groups, lr)
        unseen.append(step)
        looks = (
            config.log_every,
            config.evaluate_every,
            config.checkpoint_every,
            config.iterations,
        )
        if is_cpu(device) or any(number % every == 0 for every in looks):
            _raise_if_bad(unseen)
            unseen.clear()
        progress.iteration = number
        progress.critic_steps += plays
        progress.skipped_steps += plan.groups is not None and not plays
        yield step


@dataclass(frozen=True, slots=True)
class Plan:
    """One batch to come: indices int64 (N,), the weak first; groups None without a critic.

    epoch: passes over all faces that are finished before it.
    """

    indices: np.ndarray
    groups: Groups | None
    epoch: int


def plan_batches(
    labels: np.ndarray, config: TrainConfig, seed: int, start: int, *, has_critic: bool
) -> Iterator[Plan]:
    """The batches of iterations start … config.iterations of faces with labels (N, 2).

    An epoch is a random order of all faces, cut into whole batches; what is left over waits for
    another order.
    """
    per_epoch = len(labels) // config.batch_size
    if not per_epoch:
        raise UsageError(
            f"{len(labels)} faces to train on: expected at least a batch of {config.batch_size}"
        )
    radius = None
    if has_critic and config.grouping.scope == "dataset":
        radius = threshold_radius(labels, config.grouping)
    order, order_of = np.empty(0, np.int64), -1
    for iteration in range(start, config.iterations):
        epoch, at = divmod(iteration, per_epoch)
        if epoch != order_of:
            order = np.random.default_rng(seed_of(seed, Purpose.ORDER, epoch)).permutation(
                len(labels)
            )
            order_of = epoch
        indices = order[at * config.batch_size : (at + 1) * config.batch_size]
        if not has_critic:
            yield Plan(indices, None, epoch)
            continue
        chosen = labels[indices]
        delta = threshold_radius(chosen, config.grouping) if radius is None else radius
        groups = group(chosen, delta)
        yield Plan(np.concatenate([indices[groups.weak], indices[groups.strong]]), groups, epoch)


def is_cpu(device: torch.device) -> bool:
    return device.type == "cpu"


def network_input(crops: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Crops (N, 1 or 3, S, S), 0..255 → what the network sees, float32 (N, 3, S, S)."""
    normalised = config.crop.normalise(crops.expand(-1, 3, -1, -1))
    return normalised.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def predict(players: Players, feed: Feed, config: TrainConfig) -> np.ndarray:
    """Valence and arousal (N, 2) of a whole feed, as the model file gives them to annotation.

    The processes of a team share the work and have all of the result.
    """
    team = players.team
    players.net.eval()
    own = np.arange(len(feed))[team.rows]
    predicted = [
        players.net(images).clamp(-1, 1).float().cpu().numpy()
        for images in _images(feed, own, config)
    ]
    return team.gather_arrays(np.concatenate([np.empty((0, 2), np.float32), *predicted]), len(feed))


@torch.inference_mode()
def encode(players: Players, feed: Feed, rows: np.ndarray, config: TrainConfig) -> np.ndarray:
    """Features h (len(rows), n_features) of some of a feed; on this process alone."""
    players.net.eval()
    found = [players.net.encoder(images).float().cpu() for images in _images(feed, rows, config)]
    return torch.cat(found).numpy()


def _images(feed: Feed, rows: np.ndarray, config: TrainConfig) -> Iterator[torch.Tensor]:
    batches = [rows[i : i + config.batch_size] for i in range(0, len(rows), config.batch_size)]
    for crops in feed.batches(batches):
        yield network_input(middle(crops, config.crop.size), config)


def norm_of(net: nn.Module) -> float:
    """Of all parameters together; not finite where one of them is not."""
    norms = torch._foreach_norm([parameter.detach() for parameter in net.parameters()])
    return torch.stack(norms).sum().item()


def raise_unless_finite(players: Players, step: int) -> None:
    """Raise DivergedError when a parameter is not finite, before it is kept or scored."""
    total = norm_of(players.net)
    if not math.isfinite(total):
        raise DivergedError(step, "the norm of the parameters", total)


def _augmented(
    crops: torch.Tensor, config: TrainConfig, seed: int, number: int, team: Team
) -> torch.Tensor:
    size = config.crop.size
    if config.data.augment == "none":
        return middle(crops, size)
    generator = generator_of(seed, Purpose.AUGMENTATION, number, device=crops.device)
    draws = BatchDraws(generator, config.batch_size, team)
    augment = crop_and_flip if config.data.augment == "crop" else vary
    return augment(crops, size, draws)


def _adam(parameters: list[torch.nn.Parameter], config: OptimiserConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


def _set_rates(players: Players, config: TrainConfig, done: int) -> float:
    lr = learning_rate(config.optimiser, done, config.iterations)
    for name, optimiser in players.optimisers.items():
        scale = config.game.adv_weight if name == "adversarial" else 1.0
        for parameters in optimiser.param_groups:
            parameters["lr"] = lr * scale
    return lr


def learning_rate(config: OptimiserConfig, done: int, total: int) -> float:
    """The rate after `done` of `total` iterations."""
    if done < config.warmup:
        return config.lr * (done + 1) / config.warmup
    if config.schedule == "step":
        return config.lr * config.decay ** (done // config.decay_every)
    share = (done - config.warmup) / max(1, total - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * share))


def _raise_if_bad(steps: list[Step]) -> None:
    names = [(step.number, name) for step in steps for name in step.losses]
    values = torch.stack([loss.float() for step in steps for loss in step.losses.values()]).cpu()
    for (number, name), value in zip(names, values.tolist(), strict=True):
        if not math.isfinite(value):
            raise DivergedError(number, name, value)
