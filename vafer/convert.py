"""The weights of CAF's authors → a model file of ours.

Their repository, github.com/kdhht2334/Contrastive-Adversarial-Learning-FER, has the network in two
PyTorch files: the encoder, which is torchvision's AlexNet up to `features`, and the regressor,
`lin0`, `lin1` and `va_regressor`. What was read there, and where:

- Layers (`Regressor_light` in src/models.py): dropout, linear, ReLU, dropout, linear, ReLU, linear
  over AlexNet's 6 × 6 features, as in `AVNet`.
- Outputs (src/main.py): valence first, arousal second. The demo (Real_demo/main.py) adds 0.15 to
  both, for show; vafer does not.
- Crop (`draw_results_ssd` in Real_demo/my_util/detect_util.py, called with ad = 0.1): the
  detector's box, widened by a tenth of its size on each side, stretched to 224 × 224 pixels.
  Theirs also stretches the crop to the full range of grey levels; ours leaves it as it is.
- Colour: ImageNet's mean and deviation over RGB, as PIL reads it, in training (`FaceDataset` in
  src/main.py). The demo hands over OpenCV's BGR; we follow the training.
"""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vafer.crops import CropSpec
from vafer.download import git_blob_id
from vafer.errors import ModelError, OutputError, UsageError, why_unreadable
from vafer.model import AVNet, ModelCard, save_model
from vafer.remote import CAF_ALEXNET, CAF_REPOSITORY

CROP = CropSpec(kind="stretched", size=224, margin=0.2)

PARTS = ("weight", "bias")
# Their names → those of AVNet("alexnet", 6).
ENCODER = {f"features.{i}.{p}": f"encoder.0.{i}.{p}" for i in (0, 3, 6, 8, 10) for p in PARTS}
REGRESSOR = {
    f"{theirs}.{part}": f"regressor.{ours}.{part}"
    for theirs, ours in (("lin0", 1), ("lin1", 4), ("va_regressor", 6))
    for part in PARTS
}


def convert(encoder: Path, regressor: Path, out: Path) -> None:
    """Write the model file of an encoder and a regressor, as torch.save wrote their state dicts.

    out: ends in .safetensors, and is not there yet; its name becomes the model's. Names may have
    prefixes of wrappers, as in `module.features.0.weight`. Nothing in the files is executed. Every
    weight is used once. Raises ModelError where the files hold anything else, UsageError for `out`,
    OutputError where it cannot be written.
    """
    _check_out(out)
    states = _read(encoder), _read(regressor)
    if _has_any(states[0], REGRESSOR) and _has_any(states[1], ENCODER):
        raise ModelError(
            f"{encoder} holds the regressor and {regressor} the encoder: expected the encoder "
            "(Encoder.t7) first and the regressor (FC_layer.t7) second. Swap them"
        )
    net = AVNet("alexnet", 6)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    net.load_state_dict(
        {
            **_renamed(encoder, "encoder", states[0], ENCODER, shapes),
            **_renamed(regressor, "regressor", states[1], REGRESSOR, shapes),
        }
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_model(out, net, _card(out.stem, encoder, regressor))
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}") from error


def _check_out(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: expected a name that ends in .safetensors")
    try:
        is_there = out.exists()
    except OSError as error:  # as of a name that is too long
        raise OutputError(f"{out} cannot be written: {error.strerror}") from error
    if is_there:
        raise UsageError(f"{out} is there already. Name another file, or remove it first")


def _card(name: str, encoder: Path, regressor: Path) -> ModelCard:
    blobs = {"encoder": git_blob_id(encoder), "regressor": git_blob_id(regressor)}
    is_published = blobs == {
        "encoder": CAF_ALEXNET.encoder_blob,
        "regressor": CAF_ALEXNET.regressor_blob,
    }
    training: dict[str, Any] = {
        "source": f"{CAF_REPOSITORY}, demonstration/weights" if is_published else "not known",
        "git_blob_ids": blobs,
    }
    if is_published:
        training["datasets"] = ["aff-wild", "afew-va"]  # as demonstration/README.md says
    return ModelCard(
        name=name,
        backbone="alexnet",
        pool=6,
        crop=CROP,
        training=training,
        licence=CAF_ALEXNET.licence if is_published else "unknown",
    )


def _read(path: Path) -> dict[str, Any]:
    """A state dict, read without running what a pickle may hold. Raises ModelError."""
    try:
        with path.open("rb"):
            pass
    except IsADirectoryError as error:
        raise ModelError(f"{path} is a folder: expected a file of PyTorch weights") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {why_unreadable(path, error)}") from error
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as zipped:  # PyTorch does not look at its checksums
                if broken := zipped.testzip():
                    raise zipfile.BadZipFile(broken)
        with warnings.catch_warnings(action="ignore"):  # about the protocol of a bare pickle
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and storage each have their own for a damaged file
        # PyTorch's own text advises to read the file without this protection.
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise ModelError(
                f"{path} holds more than weights: {code[1].rstrip('.,')}, which would be run when "
                "it is read. It was not. Expected a state dict of tensors; get the file from a "
                "source that you trust"
            ) from error
        is_empty = path.is_file() and path.stat().st_size == 0
        found = "empty" if is_empty else "damaged, cut off, of another kind, or holds code"
        raise ModelError(
            f"{path} cannot be read as PyTorch weights: it is {found}, and nothing in it was run. "
            "Expected a state dict that torch.save wrote; if it was downloaded, do so anew"
        ) from error
    if not isinstance(state, Mapping):
        raise ModelError(f"{path} holds a {type(state).__name__}: expected a state dict")
    return {str(key): value for key, value in state.items()}


def _theirs(key: str, names: Mapping[str, str]) -> str | None:
    """The name that a key ends in, whatever wrappers put before it."""
    for name in names:
        if key == name or key.endswith((f".{name}", f"_{name}")):
            return name
    return None


def _has_any(state: Mapping[str, Any], names: Mapping[str, str]) -> bool:
    return any(_theirs(key, names) for key in state)


def _renamed(
    path: Path,
    part: str,
    state: Mapping[str, Any],
    names: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, torch.Tensor]:
    """The weights of one file under our names, each of them once, and no others."""
    keys: dict[str, str] = {}
    for key, value in state.items():
        name = _theirs(key, names)
        if name is None:
            if isinstance(value, torch.Tensor) and not value.numel():
                continue
            raise ModelError(
                f"{path} holds {key}, which the {part} does not have; expected "
                f"{', '.join(names)} alone. Is it another network, or are the two files swapped?"
            )
        if name in keys:
            raise ModelError(f"{path} holds {name} twice, as {keys[name]} and as {key}")
        keys[name] = key
    if missing := [name for name in names if name not in keys]:
        raise ModelError(
            f"{path} lacks {', '.join(missing)} of the {part}: it is another network, or not whole"
        )
    return {ours: _checked(path, keys[name], state[keys[name]], shapes[ours])
            for name, ours in names.items()}  # fmt: skip


def _checked(path: Path, key: str, value: object, shape: tuple[int, ...]) -> torch.Tensor:
    expected = "expected a dense tensor of floating-point numbers"
    if not isinstance(value, torch.Tensor):
        raise ModelError(f"{path}: {key} is {type(value).__name__}: {expected}")
    if value.layout != torch.strided or value.is_nested or value.is_meta:
        kind = "without values" if value.is_meta else "sparse, nested or of another layout"
        raise ModelError(f"{path}: {key} is {kind}: {expected}")
    if not value.is_floating_point():
        raise ModelError(f"{path}: {key} is {value.dtype}: {expected}")
    if tuple(value.shape) != shape:
        raise ModelError(
            f"{path}: {key} has shape {tuple(value.shape)}, expected {shape}: it is another network"
        )
    value = value.float()
    if not value.isfinite().all():
        raise ModelError(f"{path}: {key} holds NaN or infinite numbers: it is of no use")
    return value
