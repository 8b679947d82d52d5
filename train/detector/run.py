"""A training of the detector: scenes made ahead in other processes, checkpoints, an ONNX file."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from train.checkpoint import write_state
from train.detector.export import export
from train.detector.material import HELD_OUT, Labelled, Material
from train.detector.mining import most_like_faces
from train.detector.network import FaceNet, centres
from train.detector.scenes import Composer
from train.detector.targets import assign, detection_loss
from train.loop import DivergedError, norm_of
from vafer.download import sha256
from vafer.errors import UsageError
from vafer.files import write_text
from vafer.output import differences

# Height, width, scenes in a batch, share of the batches. Large faces need large scenes; batches
# have about as many pixels each.
SHAPES = (
    (128, 128, 48, 0.1), (192, 192, 28, 0.15), (256, 256, 16, 0.25), (320, 320, 10, 0.2),
    (224, 384, 12, 0.1), (384, 256, 10, 0.08), (480, 480, 5, 0.07), (384, 640, 4, 0.05),
)  # fmt: skip
LOG_EVERY, KEEP_EVERY = 50, 250
MINED_AT = (0.3, 0.55, 0.8)  # shares of the steps after which hard negatives are looked for
# Of the scenery, in blocks of so many neighbours, one in SET_ASIDE is never trained on. The scores
# are shifted so that a share of FALSE_FACES of these pictures, if they are ENOUGH, has one of 0.5
# or more.
BLOCK, SET_ASIDE, ENOUGH, FALSE_FACES = 50, 10, 100, 0.007


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """A training: `steps` batches of about `scale` million pixels, AdamW, warm-up and cosine.

    bf16: all but heads and losses computes in bfloat16. Raises UsageError.
    """

    steps: int = 36_000
    scale: int = 1
    bf16: bool = False
    lr: float = 3e-3
    weight_decay: float = 0.01
    warmup: int = 200
    ema_decay: float = 0.998
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"--steps {self.steps}: expected 1 or more")
        if self.scale < 1:
            raise UsageError(f"--scale {self.scale}: expected 1 or more")


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
    begin_with: Path | None = None,
    device: str = "cpu",
    workers: int = 1,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Path:
    """Train, or go on where `out` stopped, exactly on a like machine; returns the ONNX file.

    Hard negatives are mined on the way (`MINED_AT`): what the network takes for faces in the
    scenery, if there is any, is shown more often from then on. begin_with: a checkpoint of another
    training, whose average the network begins with; it is mined with at once. Raises UsageError
    where `out` holds a training with other options or other material, or `begin_with` none;
    DivergedError where a loss is not finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = out / "last.pt", out / "log.jsonl"
    scenery, set_aside = split(material.scenery)
    shown = replace(material, scenery=scenery + material.face_free)
    asked = {**asdict(config), "material": _digest_of(material)}
    training = _Training(config, device)
    if begin_with is not None:
        training.begin_with(begin_with)
        asked["begin_with"] = sha256(begin_with)
    step, suspects = 0, None
    if checkpoint.is_file():
        state = _state_in(checkpoint)
        if found := differences(state.get("asked", {}), asked):
            raise UsageError(
                f"{out} holds another training, there against here: {found}. Give the same "
                "options, faces, videos and pictures to go on, or another --out"
            )
        training.load(state)
        step = state["step"]
        suspects = None if state["suspects"] is None else np.array(state["suspects"])
        on_progress(f"going on after step {step}")
    _forget_after(step, log)
    mined_at = {round(share * config.steps) for share in MINED_AT} - {0}
    if begin_with is not None:
        mined_at.add(0)
    sums = dict[str, torch.Tensor]()
    while step < config.steps:
        if shown.scenery and step in mined_at:
            on_progress("looking for what is taken for a face")
            suspects = training.most_like_faces(shown.scenery)
        until = min(at for at in (*mined_at, config.steps) if at > step)
        logged = time.perf_counter()
        for batch in _ahead(Batches(shown, config, suspects), range(step, until), workers):
            step += 1
            for name, value in training.update(batch, step).items():
                sums[name] = sums.get(name, 0) + value
            if step % LOG_EVERY == 0:
                now = time.perf_counter()
                means = {name: round(total.item() / LOG_EVERY, 4) for name, total in sums.items()}
                _raise_unless_finite(step, means, checkpoint)
                entry = {"step": step, **means}
                with log.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
                on_progress(f"{entry}, {LOG_EVERY / (now - logged):.2f} steps/s")
                sums, logged = {}, now
            if step % KEEP_EVERY == 0 or step == config.steps:
                norm = {"the norm of the parameters": norm_of(training.net)}
                _raise_unless_finite(step, norm, checkpoint)
                state = {
                    **training.state(),
                    "step": step,
                    "asked": asked,
                    "suspects": None if suspects is None else suspects.tolist(),
                }
                write_state(checkpoint, state)
    shift = 0.0
    if len(set_aside) >= ENOUGH:
        on_progress(f"looking for false faces in {len(set_aside)} pictures set aside")
        shift = shift_for(training.most_like_faces(set_aside)[:, 0])
    else:
        on_progress(
            f"scores are not shifted: {len(set_aside)} pictures set aside, expected {ENOUGH}"
        )
    facts = {
        "portraits": len(material.portraits),
        "frames": len(material.frames),
        "held_out": list(HELD_OUT),
        "scenery": len(scenery),
        "set_aside": len(set_aside),
        "face_free": len(material.face_free),
        "people": len(material.people),
        "procedure": asdict(config),
        "begins_with": asked.get("begin_with", ""),
        "shift": shift,
    }
    path = out / "detector.onnx"
    export(training.average.module, path, {"training": facts}, shift)
    return path


class _Training:
    """Network, its running average and their optimiser, as far as they have come."""

    def __init__(self, config: DetectorConfig, device: str) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.net = FaceNet().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        ema = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(self.net, multi_avg_fn=ema, use_buffers=True)
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), config.lr, weight_decay=config.weight_decay, fused=True
        )

    def update(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        """Do this step, counted from 1; returns its losses."""
        config = self.config
        rise, fall = step / config.warmup, 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = config.lr * min(rise, fall)
        batch = Batch(*(part.to(self.device, non_blocking=True) for part in batch))
        pictures = batch.pictures.permute(0, 3, 1, 2).float()
        pictures = ((pictures - 127.5) / 128).contiguous(memory_format=torch.channels_last)
        with torch.autocast(pictures.device.type, torch.bfloat16, enabled=config.bf16):
            found = self.net(pictures)
        losses = detection_loss(found, batch.cells, batch.kinds, batch.boxes, batch.points)
        self.optimiser.zero_grad()
        torch.stack([*losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 10.0)
        self.optimiser.step()
        self.average.update_parameters(self.net)
        return {name: loss.detach() for name, loss in losses.items()}

    def most_like_faces(self, pictures: list[Labelled]) -> np.ndarray:
        """What the average takes for faces; see `train.detector.mining`."""
        return most_like_faces(self.average.module.eval(), pictures)

    def begin_with(self, checkpoint: Path) -> None:
        """Take the average of another training for the network. Raises UsageError."""
        try:
            state = torch.load(checkpoint, map_location=self.device, weights_only=True)
            self.average.load_state_dict(state["average"])
        except Exception as error:  # whatever a file of another kind makes of these two lines
            raise UsageError(
                f"{checkpoint} cannot be begun with ({type(error).__name__}): expected the last.pt "
                "of a training of this detector"
            ) from error
        self.net.load_state_dict(self.average.module.state_dict())

    def state(self) -> dict[str, Any]:
        return {part: getattr(self, part).state_dict() for part in ("net", "average", "optimiser")}

    def load(self, state: dict[str, Any]) -> None:
        for part in ("net", "average", "optimiser"):
            getattr(self, part).load_state_dict(state[part])


def _state_in(checkpoint: Path) -> dict[str, Any]:
    """Raises UsageError where it is damaged."""
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, UnpicklingError) as error:
        raise UsageError(
            f"{checkpoint} cannot be gone on with ({type(error).__name__}): it is damaged. Delete "
            "it to begin anew, or take another --out"
        ) from error


def _raise_unless_finite(step: int, values: Mapping[str, float], checkpoint: Path) -> None:
    """Raise DivergedError before what is wrong is kept."""
    for name, value in values.items():
        if not math.isfinite(value):
            left = f"{checkpoint} is of before" if checkpoint.is_file() else "nothing was kept yet"
            advice = f". The training stopped; {left}. Try it without --bf16, or with another seed"
            raise DivergedError(step, name, value, advice)


def shift_for(scores: np.ndarray) -> float:
    """Of the logits, downwards, so that a share of `FALSE_FACES` of scores (N,) is 0.5 or more."""
    score = float(np.quantile(scores, 1 - FALSE_FACES).clip(1e-6, 1 - 1e-6))
    return math.log(score / (1 - score))


def split(scenery: list[Labelled]) -> tuple[list[Labelled], list[Labelled]]:
    """Pictures to train on, and whole blocks set aside, less copies of what is trained on."""
    parts: tuple[list[Labelled], list[Labelled]] = [], []
    for i, picture in enumerate(scenery):
        parts[i // BLOCK % SET_ASIDE == SET_ASIDE - 1].append(picture)
    trained_on = {picture.file for picture in parts[0]}
    return parts[0], [picture for picture in parts[1] if picture.file not in trained_on]


def _digest_of(material: Material) -> str:
    """The beginning of a SHA-256 over all files and labels, in their order."""
    digest = hashlib.sha256()
    kinds = (material.portraits, material.frames, material.scenery, material.people)
    for pictures in (*kinds, material.face_free):
        digest.update(len(pictures).to_bytes(8))
        for picture in pictures:
            labels = (picture.boxes, picture.points, picture.sure)
            told = picture.file + b"".join(values.tobytes() for values in labels)
            digest.update(hashlib.sha256(told).digest())
    return digest.hexdigest()[:16]


def _forget_after(step: int, log: Path) -> None:
    """Leave out of a log what will be done again, and a line that breaks off."""
    lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
    whole = [line for line in lines if line.endswith("\n")]
    write_text(log, "".join(line for line in whole if json.loads(line)["step"] <= step))


def _ahead(batches: Batches, steps: range, workers: int) -> Iterator[Batch]:
    yield from DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
