"""The time of one CAF iteration against the sum of what cannot be left out, and against plain code.

    python bench/train_step.py [--device cuda] [--batch 256] [--size 224] [--repeats 5] [--compile]

Unavoidable: two passes of the encoder, the backward pass over the weak part, the backward pass over
the whole. In each repeat all parts are timed in turn, so that what else the machine does meets all
alike; medians are printed, with the ratios to beat beside them. `plain` is the same iteration with
the critic loss in loops over samples and pairs and a second whole pass, as such code is usually
written.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.train.reference import plain_critic_loss
from train.config import TrainConfig
from train.groups import group, threshold_radius
from train.loop import make_players
from train.losses import av_loss
from train.parallel import Team
from train.steps import Batch, Players, iterate, regression_step
from vafer.crops import CropSpec

PAPERS_ITERATIONS = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backbone", default="alexnet")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--no-plain", action="store_true", help="leave out the slow comparison")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    config = TrainConfig(
        crop=CropSpec(size=arguments.size),
        batch_size=arguments.batch,
        precision=arguments.precision,
        compile=arguments.compile,
    )
    config = replace(config, model=replace(config.model, backbone=arguments.backbone))
    players = make_players(config, 0, device, Team())
    alone = make_players(replace(config, critic="none"), 0, device, Team())
    labels, batch = make_batch(arguments.batch, arguments.size, device, config)
    n_weak = batch.n_weak
    print(f"{arguments.backbone} at {arguments.size}, batch {arguments.batch} ({n_weak} weak), "
          f"{arguments.precision}, {device}, torch {torch.__version__}")  # fmt: skip

    parts: dict[str, Callable[[], object]] = {
        "first pass": lambda: first_pass(players, batch),
        "backward over the weak": lambda: first_pass(players, batch).sum().backward(),
        "second pass": lambda: whole_pass(players, batch),
        "backward over all": lambda: whole_pass(players, batch).backward(),
        "grouping": lambda: group(labels, threshold_radius(labels, config.grouping)),
        "margin and critic loss": lambda: critic_loss(players, batch),
        "iteration": lambda: iterate(players, batch),
        "supervised": lambda: regression_step(alone, batch),
    }
    if not arguments.no_plain:
        parts["plain"] = lambda: plain_iteration(players, batch)
    times = measure(parts, device, arguments.repeats)
    # A backward pass is timed with the pass before it, which is taken off again.
    times["backward over the weak"] -= times["first pass"]
    times["backward over all"] -= times["second pass"]
    for name, seconds in times.items():
        print(f"  {name:24s} {1000 * seconds:10.2f} ms")

    iteration = times["iteration"]
    unavoidable = sum(times[name] for name in list(parts)[:4])
    extra = times["grouping"] + times["margin and critic loss"]
    print(f"iteration / unavoidable parts: {iteration / unavoidable:.3f} (aim: at most 1.25)")
    print(f"grouping, margin, critic loss / iteration: {extra / iteration:.2%} (aim: at most 5 %)")
    if "plain" in times:
        print(f"plain / iteration: {times['plain'] / iteration:.2f}")
    passes = unavoidable / (times["second pass"] + times["backward over all"])
    print(f"images/s: {arguments.batch / iteration:.0f}")
    print(f"images/s of supervised training alone: {arguments.batch / times['supervised']:.0f}")
    share = passes * times["supervised"] / iteration
    print(
        f"  reached, after its {passes:.2f} times as long passes: {share:.0%} (aim: 60 % or more)"
    )
    print(f"{PAPERS_ITERATIONS:,} iterations: {PAPERS_ITERATIONS * iteration / 60:.1f} minutes")


def make_batch(
    n: int, size: int, device: torch.device, config: TrainConfig
) -> tuple[np.ndarray, Batch]:
    """Random crops with labels spread over the disc; the weak first."""
    rng = np.random.default_rng(0)
    angle, radius = rng.uniform(0, 2 * np.pi, n), np.sqrt(rng.uniform(0, 1, n))
    labels = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)
    groups = group(labels, threshold_radius(labels, config.grouping))
    order = [*groups.weak, *groups.strong]
    images = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    ordered = torch.from_numpy(labels[order]).to(device)
    return labels, Batch(images, ordered, groups.n_weak, 0, torch.Generator().manual_seed(0))


def first_pass(players: Players, batch: Batch) -> torch.Tensor:
    """Features of all, with a graph for the weak; the weak ones' are returned."""
    with players.autocast():
        with torch.no_grad():
            players.net.encoder(batch.images[batch.n_weak :])
        return players.net.encoder(batch.images[: batch.n_weak])


def whole_pass(players: Players, batch: Batch) -> torch.Tensor:
    with players.autocast():
        features = players.net.encoder(batch.images)
    return av_loss(players.net.regressor(features.float()), batch.labels)


def critic_loss(players: Players, batch: Batch) -> None:
    """Of latent features that are there, with its gradient."""
    assert players.objective is not None
    z = torch.randn(len(batch.images), 16, device=batch.images.device, requires_grad=True)
    players.objective.critic_loss(
        z[batch.n_weak :], z[: batch.n_weak], epoch=0, generator=batch.generator
    ).backward()


def plain_iteration(players: Players, batch: Batch) -> None:
    """Three whole passes, and the critic loss sample by sample, pair by pair."""
    assert players.critic is not None

    def encode() -> torch.Tensor:
        with players.autocast():
            return players.net.encoder(batch.images).float()

    z = players.critic(encode().detach())
    plain_critic_loss(z[batch.n_weak :], z[: batch.n_weak]).backward()
    players.optimisers["critic"].step()
    z = players.critic(encode())
    (-z[: batch.n_weak].mean()).backward()
    players.optimisers["adversarial"].step()
    av_loss(players.net.regressor(encode()), batch.labels).backward()
    players.optimisers["regression"].step()
    for module in (players.net, players.critic):
        module.zero_grad()


def measure(
    parts: dict[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, float]:
    """Median seconds of each part, all of them once a repeat."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for repeat in range(repeats + 1):
        for name, run in parts.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            if repeat:  # the first is for warming up
                times[name].append(time.perf_counter() - start)
    return {name: median(found) for name, found in times.items()}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
