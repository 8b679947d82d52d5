"""Cross-fitted expression posteriors: how each face's expression reads to a network that never saw
the face, nor anybody of the same name.

A label is one word for a face; a posterior says how much of each expression is in it. Labels are
graded by both: see `train.sets`.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from train.augment import middle, vary
from train.data import FaceSet
from train.draws import BatchDraws, Purpose, generator_of, seed_of
from train.feed import Feed
from train.parallel import Team
from vafer.files import write_whole

SIDE = 48  # pixels that the network sees: those that FER2013's pictures have
WIDE = 56  # with the surroundings that augmentation moves it in
PREDICTED_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class CrossFit:
    """How posteriors are made. n_folds networks, each trained on all folds but one, predict it.

    width: channels of the network's first layers. Whatever is here decides what the cache may give.
    """

    n_folds: int = 3
    epochs: int = 24
    lr: float = 3e-3
    weight_decay: float = 0.02
    smoothing: float = 0.1
    width: int = 64
    batch: int = 256
    ema_decay: float = 0.998
    seed: int = 0


class _Block(nn.Module):
    """Two convolutions and a way around them; halves the side."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, 2, 1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(n_out),
        )
        self.around = nn.Sequential(nn.Conv2d(n_in, n_out, 1, 2, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.around(x))


def make_classifier(n_classes: int, width: int) -> nn.Sequential:
    """Grey crops (N, 1, 48, 48) → logits (N, n_classes); 4.9 million parameters of width 64."""
    widths = (width, width, 2 * width, 4 * width, 8 * width)
    return nn.Sequential(
        nn.Conv2d(1, widths[0], 3, 1, 1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
        *(_Block(a, b) for a, b in pairwise(widths)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(widths[-1], n_classes),
    )


def cross_fitted(
    sets: Sequence[FaceSet],
    names: Sequence[str],
    groups: np.ndarray,
    cache: Path,
    *,
    options: CrossFit,
    key: str,
    device: torch.device,
    on_progress: Callable[[str], None] = lambda text: None,
) -> np.ndarray:
    """Posteriors (N, len(names)) of all faces of `sets`, one set after the other.

    names: the expressions. groups: str (N,), faces of one group (a person, or copies of a picture)
    fall into the same fold. key: of the crops. Finished folds are kept in `cache`.
    """
    expressions = np.concatenate([faces.expressions for faces in sets])
    labels = np.array([names.index(e) for e in expressions])
    fold = np.array([_fold(group, options.n_folds) for group in groups])
    faces_key = hashlib.sha256("".join([*expressions, *groups]).encode()).hexdigest()
    digest = hashlib.sha256(json.dumps([key, faces_key, repr(options)]).encode()).hexdigest()[:12]
    crops: torch.Tensor | None = None
    posteriors = np.empty((len(labels), len(names)), np.float32)
    for held_out in range(options.n_folds):
        path = cache / f"posteriors-{digest}" / f"{held_out}.npy"
        is_held_out = fold == held_out
        if not path.is_file():
            if crops is None:
                crops = _small_crops(sets, device)
            rows = torch.from_numpy(np.flatnonzero(~is_held_out))
            net = _train(crops, labels, rows, len(names), options, held_out, on_progress)
            found = _posteriors(net, crops, torch.from_numpy(np.flatnonzero(is_held_out)))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, partial(_save, found), is_shared=True)
            agrees = float((found.argmax(axis=1) == labels[is_held_out]).mean())
            on_progress(f"fold {held_out}: {agrees:.1%} of labels agree with the posterior")
        posteriors[is_held_out] = np.load(path)
    return without_smoothing(posteriors, options.smoothing)


def without_smoothing(posteriors: np.ndarray, smoothing: float) -> np.ndarray:
    """What posteriors (N, K) would be had each label not been smoothed: the even share taken out.

    Else every face would lean to the mean of all norms, which is negative and aroused.
    """
    share = smoothing / posteriors.shape[1]
    sharper = (posteriors - share).clip(min=0)
    return sharper / sharper.sum(axis=1, keepdims=True)


def _fold(group: str, n_folds: int) -> int:
    return int(hashlib.sha256(f"cross-fit {group}".encode()).hexdigest(), 16) % n_folds


def _save(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:  # np.save would add its ending to a path
        np.save(file, array)


def _small_crops(sets: Sequence[FaceSet], device: torch.device) -> torch.Tensor:
    """All crops in grey, uint8 (N, 1, WIDE, WIDE)."""
    parts = []
    for faces in sets:
        rows = np.array_split(np.arange(len(faces)), len(faces) // PREDICTED_AT_ONCE + 1)
        for crops in Feed([faces], device, "never").batches(rows):
            grey = crops.float().mean(dim=1, keepdim=True)
            small = F.interpolate(grey, size=WIDE, mode="bilinear", antialias=True)
            parts.append(small.round().clamp(0, 255).byte())
    return torch.cat(parts)


def _train(
    crops: torch.Tensor,
    labels: np.ndarray,
    rows: torch.Tensor,
    n_classes: int,
    options: CrossFit,
    fold: int,
    on_progress: Callable[[str], None],
) -> nn.Module:
    """A classifier of the faces `rows`; the average over its last steps."""
    device, seed = crops.device, options.seed * 100 + fold
    torch.manual_seed(seed_of(seed, Purpose.WEIGHTS))
    net = make_classifier(n_classes, options.width)
    net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = get_ema_multi_avg_fn(options.ema_decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(net, multi_avg_fn=ema, use_buffers=True)
    optimiser = torch.optim.AdamW(
        net.parameters(), options.lr, weight_decay=options.weight_decay, fused=True
    )
    targets = torch.from_numpy(labels).to(device)
    batch = min(options.batch, len(rows))
    total = options.epochs * (len(rows) // batch)
    warmup = max(1, total // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / total))),
    )
    for step, chosen in enumerate(_batches(rows, batch, options.epochs, seed)):
        draws = BatchDraws(
            generator_of(seed, Purpose.AUGMENTATION, step, device=device), len(chosen), Team()
        )
        images = vary(crops[chosen.to(device)], SIDE, draws)
        torch.manual_seed(seed_of(seed, Purpose.DROPOUT, step))
        with torch.autocast(device.type, torch.bfloat16):
            logits = net(_normalised(images))
        loss = F.cross_entropy(
            logits.float(), targets[chosen.to(device)], label_smoothing=options.smoothing
        )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        average.update_parameters(net)
        if step % 50 == 0:
            on_progress(f"fold {fold}: step {step}/{total}, cross entropy {loss.item():.3f}")
    return average.module.eval()


def _batches(rows: torch.Tensor, size: int, epochs: int, seed: int) -> Iterator[torch.Tensor]:
    for epoch in range(epochs):
        order = torch.randperm(len(rows), generator=generator_of(seed, Purpose.ORDER, epoch))
        for at in range(0, len(rows) - size + 1, size):
            yield rows[order[at : at + size]]


def _normalised(crops: torch.Tensor) -> torch.Tensor:
    """Each crop by its own light: (N, 1, S, S), 0..255 → mean 0, deviation 1."""
    mean = crops.mean(dim=(1, 2, 3), keepdim=True)
    spread = crops.std(dim=(1, 2, 3), keepdim=True)
    return ((crops - mean) / (spread + 1)).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def _posteriors(net: nn.Module, crops: torch.Tensor, rows: torch.Tensor) -> np.ndarray:
    """(len(rows), n_classes), mean of the face and its mirror image."""
    found = []
    for chosen in torch.split(rows, PREDICTED_AT_ONCE):
        images = _normalised(middle(crops[chosen.to(crops.device)], SIDE).float())
        both = net(images).softmax(1) + net(images.flip(-1)).softmax(1)
        found.append((both / 2).float().cpu())
    return torch.cat(found).numpy()
