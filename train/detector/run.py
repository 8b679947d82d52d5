"""A training of the detector: scenes made ahead in other processes, checkpoints, an ONNX file."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from train.detector.export import export
from train.detector.material import HELD_OUT, Labelled, Material
from train.detector.mining import most_like_faces
from train.detector.network import FaceNet, centres
from train.detector.scenes import Composer
from train.detector.targets import assign, detection_loss
from vafer.files import write_text, write_whole

# Height, width, scenes in a batch, share of the batches. Large faces need large scenes; batches
# have about as many pixels each.
SHAPES = (
    (128, 128, 48, 0.1), (192, 192, 28, 0.15), (256, 256, 16, 0.25), (320, 320, 10, 0.2),
    (224, 384, 12, 0.1), (384, 256, 10, 0.08), (480, 480, 5, 0.07), (384, 640, 4, 0.05),
)  # fmt: skip
LOG_EVERY, KEEP_EVERY = 50, 250


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """A training: `steps` batches of about `scale` million pixels, AdamW, warm-up and cosine."""

    steps: int = 20_000
    scale: int = 1
    lr: float = 3e-3
    weight_decay: float = 0.01
    warmup: int = 200
    ema_decay: float = 0.998
    seed: int = 0


class Batch(NamedTuple):
    """Scenes of one size, uint8 (N, H, W, 3), and what M anchors should say of them.

    cells (M, 4). kinds (N, M). boxes (N, M, 4), points (N, M, 10). See `train.detector.targets`.
    """

    pictures: torch.Tensor
    cells: torch.Tensor
    kinds: torch.Tensor
    boxes: torch.Tensor
    points: torch.Tensor


class Batches(Dataset[Batch]):
    """Batch by step: a function of seed, step and suspects (see `Composer`) alone."""

    def __init__(
        self, material: Material, config: DetectorConfig, suspects: np.ndarray | None = None
    ) -> None:
        self.composer = Composer(material, suspects)
        self.config = config

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.config.seed, step])
        height, width, n_scenes, _ = SHAPES[
            rng.choice(len(SHAPES), p=[share for *_, share in SHAPES])
        ]
        cells = centres(height, width)
        scenes = [
            self.composer.scene(rng, height, width) for _ in range(n_scenes * self.config.scale)
        ]
        kinds, boxes, points = [], [], []
        for scene in scenes:
            kind, owner = assign(scene, cells.numpy())
            kinds.append(kind)
            some = len(scene.boxes) > 0
            boxes.append(scene.boxes[owner] if some else np.zeros((len(cells), 4), np.float32))
            points.append(
                scene.points.reshape(-1, 10)[owner]
                if some
                else np.zeros((len(cells), 10), np.float32)
            )
        return Batch(
            torch.from_numpy(np.stack([scene.picture for scene in scenes])),
            cells,
            *(torch.from_numpy(np.stack(rows)) for rows in (kinds, boxes, points)),
        )


def train_detector(
    material: Material,
    out: Path,
    config: DetectorConfig,
    *,
    device: str = "cpu",
    workers: int = 1,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Path:
    """Train, or go on where `out` stopped; returns the ONNX file.

    A call that goes on with other options or scenery than before first mines hard negatives: what
    the network takes for faces in the scenery, if there is any, is shown more often from then on.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "last.pt"
    torch.manual_seed(config.seed)
    net = FaceNet().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(net, multi_avg_fn=ema, use_buffers=True)
    optimiser = torch.optim.AdamW(
        net.parameters(), config.lr, weight_decay=config.weight_decay, fused=True
    )
    start, before = 0, list[dict[str, Any]]()  # calls that went before this one
    suspects, scenery = None, _digest_of(material.scenery)
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        start, before = state["step"], state["calls"]
        asked = {**asdict(config), "until": config.steps}
        if {**before[-1], "until": config.steps} == asked and state["scenery"] == scenery:
            before.pop()  # the same goes on
            suspects = None if state["suspects"] is None else np.array(state["suspects"])
        elif material.scenery and start < config.steps:
            on_progress("looking for what is taken for a face")
            suspects = most_like_faces(average.module.eval(), material.scenery)
        _forget_after(start, out / "log.jsonl")
        on_progress(f"going on after step {start}")
    batches = Batches(material, config, suspects)
    began, sums = time.perf_counter(), dict[str, torch.Tensor]()
    for step, batch in enumerate(_ahead(batches, start, workers), start + 1):
        for group in optimiser.param_groups:
            group["lr"] = config.lr * min(
                step / config.warmup, 0.5 * (1 + math.cos(math.pi * step / config.steps))
            )
        batch = Batch(*(part.to(device, non_blocking=True) for part in batch))
        pictures = batch.pictures.permute(0, 3, 1, 2).float()
        pictures = ((pictures - 127.5) / 128).contiguous(memory_format=torch.channels_last)
        losses = detection_loss(net(pictures), batch.cells, batch.kinds, batch.boxes, batch.points)
        optimiser.zero_grad()
        torch.stack([*losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimiser.step()
        average.update_parameters(net)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value.detach()
        if step % LOG_EVERY == 0:
            rate = (step - start) / (time.perf_counter() - began)
            entry = {"step": step, **{k: round(v.item() / LOG_EVERY, 4) for k, v in sums.items()}}
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
            on_progress(f"{entry}, {rate:.2f} steps/s")
            sums.clear()
        if step % KEEP_EVERY == 0 or step == config.steps:
            state = {
                "net": net.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step,
                "calls": [*before, {**asdict(config), "until": step}],
                "scenery": scenery,
                "suspects": None if suspects is None else suspects.tolist(),
            }
            write_whole(checkpoint, partial(torch.save, state))
    path = out / "detector.onnx"
    calls = [*before, {**asdict(config), "until": config.steps}]
    export(average.module, path, {"training": _facts(material, calls)})
    return path


def _facts(material: Material, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """What a card says of a training. calls: their options, each `until` the step it came to."""
    return {
        "portraits": len(material.portraits),
        "frames": len(material.frames),
        "held_out": list(HELD_OUT),
        "scenery": len(material.scenery),
        "people": len(material.people),
        "procedure": calls,
    }


def _digest_of(pictures: list[Labelled]) -> str:
    """SHA-256 over the pictures' files, in their order."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(hashlib.sha256(picture.file).digest())
    return digest.hexdigest()


def _forget_after(step: int, log: Path) -> None:
    """Leave out of a log what will be done again."""
    lines = log.read_text().splitlines() if log.is_file() else []
    write_text(log, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))


def _ahead(batches: Batches, start: int, workers: int) -> Iterator[Batch]:
    yield from DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, len(batches)),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
