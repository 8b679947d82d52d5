"""A training of the detector: scenes made ahead in other processes, checkpoints, an ONNX file."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
from vafer.errors import UsageError
from vafer.files import write_text, write_whole

# Height, width, scenes in a batch, share of the batches. Large faces need large scenes; batches
# have about as many pixels each.
SHAPES = (
    (128, 128, 48, 0.1), (192, 192, 28, 0.15), (256, 256, 16, 0.25), (320, 320, 10, 0.2),
    (224, 384, 12, 0.1), (384, 256, 10, 0.08), (480, 480, 5, 0.07), (384, 640, 4, 0.05),
)  # fmt: skip
LOG_EVERY, KEEP_EVERY = 50, 250
MINED_AT = (0.4, 0.7)  # shares of the steps after which hard negatives are looked for
# Of the scenery, in blocks of so many neighbours, one in SET_ASIDE is never trained on. The scores
# are shifted so that a share of FALSE_FACES of these pictures has one of 0.5 or more.
BLOCK, SET_ASIDE, FALSE_FACES = 50, 10, 0.01


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """A training: `steps` batches of about `scale` million pixels, AdamW, warm-up and cosine.

    bf16: all but heads and losses computes in bfloat16.
    """

    steps: int = 22_000
    scale: int = 1
    bf16: bool = False
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

    Hard negatives are mined on the way (`MINED_AT`): what the network takes for faces in the
    scenery, if there is any, is shown more often from then on. Raises UsageError where `out` holds
    a training with other options or other scenery.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "last.pt"
    shown, set_aside = _split(material.scenery)
    of_material = replace(material, scenery=shown)
    asked = {**asdict(config), "scenery": _digest_of(material.scenery)}
    torch.manual_seed(config.seed)
    net = FaceNet().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(net, multi_avg_fn=ema, use_buffers=True)
    optimiser = torch.optim.AdamW(
        net.parameters(), config.lr, weight_decay=config.weight_decay, fused=True
    )
    step, suspects = 0, None
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["asked"] != asked:
            raise UsageError(
                f"{out} holds a training with {state['asked']}, and {asked} is asked for: "
                "name another --out, or the same options and scenery to go on"
            )
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
        suspects = None if state["suspects"] is None else np.array(state["suspects"])
        _forget_after(step, out / "log.jsonl")
        on_progress(f"going on after step {step}")
    mined_at = {round(share * config.steps) for share in MINED_AT}
    sums, logged = dict[str, torch.Tensor](), time.perf_counter()
    while step < config.steps:
        if shown and step in mined_at:
            on_progress("looking for what is taken for a face")
            suspects = most_like_faces(average.module.eval(), shown)
        until = min(at for at in (*mined_at, config.steps) if at > step)
        for batch in _ahead(Batches(of_material, config, suspects), range(step, until), workers):
            step += 1
            for group in optimiser.param_groups:
                group["lr"] = config.lr * min(
                    step / config.warmup, 0.5 * (1 + math.cos(math.pi * step / config.steps))
                )
            losses = _losses(net, Batch(*(part.to(device, non_blocking=True) for part in batch)),
                             bf16=config.bf16)  # fmt: skip
            optimiser.zero_grad()
            torch.stack([*losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
            optimiser.step()
            average.update_parameters(net)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach()
            if step % LOG_EVERY == 0:
                now = time.perf_counter()
                entry = {
                    "step": step,
                    **{k: round(v.item() / LOG_EVERY, 4) for k, v in sums.items()},
                }
                with (out / "log.jsonl").open("a") as log:
                    log.write(json.dumps(entry) + "\n")
                on_progress(f"{entry}, {LOG_EVERY / (now - logged):.2f} steps/s")
                sums, logged = {}, now
            if step % KEEP_EVERY == 0 or step == config.steps:
                state = {
                    "net": net.state_dict(),
                    "average": average.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "step": step,
                    "asked": asked,
                    "suspects": None if suspects is None else suspects.tolist(),
                }
                write_whole(checkpoint, partial(torch.save, state))
    shift = 0.0
    if set_aside:
        on_progress(f"looking for false faces in {len(set_aside)} pictures set aside")
        shift = shift_for(most_like_faces(average.module.eval(), set_aside)[:, 0])
    facts = {
        "portraits": len(material.portraits),
        "frames": len(material.frames),
        "held_out": list(HELD_OUT),
        "scenery": len(shown),
        "set_aside": len(set_aside),
        "people": len(material.people),
        "procedure": asdict(config),
        "shift": shift,
    }
    path = out / "detector.onnx"
    export(average.module, path, {"training": facts}, shift)
    return path


def shift_for(scores: np.ndarray) -> float:
    """Of the logits, downwards, so that a share of `FALSE_FACES` of scores (N,) is 0.5 or more."""
    p = float(np.quantile(scores, 1 - FALSE_FACES))
    return math.log(p / (1 - p))


def _losses(net: FaceNet, batch: Batch, *, bf16: bool) -> dict[str, torch.Tensor]:
    pictures = batch.pictures.permute(0, 3, 1, 2).float()
    pictures = ((pictures - 127.5) / 128).contiguous(memory_format=torch.channels_last)
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=bf16):
        found = net(pictures)
    return detection_loss(found, batch.cells, batch.kinds, batch.boxes, batch.points)


def _split(scenery: list[Labelled]) -> tuple[list[Labelled], list[Labelled]]:
    """Pictures to train on, and those that are set aside."""
    parts: tuple[list[Labelled], list[Labelled]] = [], []
    for i, picture in enumerate(scenery):
        parts[i // BLOCK % SET_ASIDE == SET_ASIDE - 1].append(picture)
    return parts


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


def _ahead(batches: Batches, steps: range, workers: int) -> Iterator[Batch]:
    yield from DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
