"""The training loop: a generator of what happened in each step. Its consumer logs and saves."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from train.augment import augment, centre
from train.config import TrainConfig
from train.data import FaceSet
from train.steps import Batch, regression_step
from vafer.errors import UsageError
from vafer.model import AVNet


@dataclass(frozen=True, slots=True)
class Step:
    """One iteration: its number of a total, its epoch (both from 1), its loss and its rate."""

    number: int
    total: int
    epoch: int
    last_of_epoch: bool
    loss_av: torch.Tensor
    learning_rate: float


def make_net(config: TrainConfig) -> AVNet:
    """A network from scratch, with PyTorch's own initialisation.

    He initialisation did not train: its large outputs die at the eight units before the last layer
    (PCC 0 after 220 steps of 128 faces, where this one had reached 0.5).
    """
    torch.manual_seed(config.seed)
    net = AVNet(config.backbone, config.pool)
    net.to(memory_format=torch.channels_last)
    return net.to(config.device)


def training_steps(net: AVNet, sets: list[FaceSet], config: TrainConfig) -> Iterator[Step]:
    """Train `net` in place for config.epochs over the sets together, yielding after each step.

    Raises FloatingPointError, with the step and the loss, when the loss is no longer finite.
    """
    crops = torch.from_numpy(np.concatenate([s.crops for s in sets])).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.concatenate([s.labels for s in sets]))
    generator = torch.Generator().manual_seed(config.seed)
    optimiser = torch.optim.AdamW(
        net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    steps_per_epoch = len(crops) // config.batch_size
    if not steps_per_epoch:
        raise UsageError(
            f"{len(crops)} faces to train on: expected at least a batch of {config.batch_size}"
        )
    total = steps_per_epoch * config.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda done: _warm_cosine(done, total, config.warmup)
    )
    number = 0
    for epoch in range(1, config.epochs + 1):
        net.train()
        order = torch.randperm(len(crops), generator=generator)
        for i in range(steps_per_epoch):
            chosen = order[i * config.batch_size : (i + 1) * config.batch_size]
            varied = augment(crops[chosen].to(config.device), config.crop.size, generator)
            batch = Batch(_to_input(varied, config), labels[chosen].to(config.device))
            loss = regression_step(net, optimiser, batch, bf16=config.bf16)
            rate = float(schedule.get_last_lr()[0])
            schedule.step()
            number += 1
            if not torch.isfinite(loss):
                raise FloatingPointError(f"step {number}: L_AV is {loss.item()}")
            yield Step(number, total, epoch, i + 1 == steps_per_epoch, loss, rate)


@torch.inference_mode()
def predict(net: AVNet, faces: FaceSet, config: TrainConfig) -> np.ndarray:
    """Valence and arousal of a whole set, as annotation would give them: float32 (N, 2)."""
    net.eval()
    found = []
    for start in range(0, len(faces), config.batch_size):
        part = torch.from_numpy(faces.crops[start : start + config.batch_size]).permute(0, 3, 1, 2)
        middle = centre(part.to(config.device), config.crop.size)
        found.append(net(_to_input(middle, config)).clamp(-1, 1).float().cpu())
    return torch.cat(found).numpy()


def _to_input(crops: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    crops = crops.expand(-1, 3, -1, -1)
    return config.crop.normalise(crops).contiguous(memory_format=torch.channels_last)


def _warm_cosine(done: int, total: int, warmup: int) -> float:
    if done < warmup:
        return (done + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(1, total - warmup)))
