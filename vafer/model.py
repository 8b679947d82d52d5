"""Crops → valence and arousal: the encoder and regressor of CAF, and the file that holds them.

Architecture: Kim & Song, "Contrastive Adversarial Learning for Person Independent Facial Emotion
Recognition", AAAI 2021. The critic exists in training only and is never in a model file.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vafer.crops import CropSpec
from vafer.errors import ModelError, why_unreadable
from vafer.files import write_whole

FORMAT_VERSION = 1
METADATA_KEY = "vafer"
Backbone = Literal["alexnet", "resnet18"]
CARD_VALUES: dict[str, tuple[type, str]] = {  # of a card's JSON, but for the crop
    **dict.fromkeys(("name", "backbone", "licence", "text", "weights_sha256"), (str, "text")),
    **dict.fromkeys(("training", "metrics"), (dict, "a JSON object")),
    "pool": (int, "a whole number"),
}


class AVNet(nn.Module):
    """Encoder f_e and regressor f_r: crops x → features h → valence, arousal.

    backbone: `alexnet` (the paper's "AlexNet (tuned)") or `resnet18`. pool: AlexNet's feature map
    is averaged to pool × pool; 6 fits an input of 224 pixels, 2 one of 112, 1 one of 64. ResNet18
    is pooled to one vector whatever the input, so pool is 1. dropout: of the regressor in training.
    """

    def __init__(self, backbone: Backbone, pool: int, *, dropout: float = 0.5) -> None:
        super().__init__()
        # Imported here: it takes longer than the rest of this module, and loading needs it alone.
        from torchvision import models

        if backbone == "alexnet":
            net = models.alexnet(weights=None)
            self.encoder = nn.Sequential(net.features, nn.AdaptiveAvgPool2d(pool), nn.Flatten())
            self.n_features = 256 * pool * pool
        elif backbone == "resnet18":
            if pool != 1:
                raise ModelError(f"resnet18 with pool {pool}: its features are pooled to 1 × 1")
            resnet = models.resnet18(weights=None)
            resnet.fc = nn.Identity()
            self.encoder = resnet
            self.n_features = 512
        else:
            raise ModelError(f"backbone is {backbone!r}: expected 'alexnet' or 'resnet18'")
        self.regressor = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(self.n_features, 64),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(64, 8),
            nn.ReLU(),
            nn.Linear(8, 2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised crops (N, 3, S, S) → valence and arousal (N, 2), not clipped."""
        return self.regressor(self.encoder(x))


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model file says of itself besides its weights; all of it fits into JSON.

    training: data sets, folds and hashed subject ids, procedure. metrics: held-out scores, by set.
    text: the card for people, Markdown; empty where nobody wrote one. weights_sha256: of those in
    the file, see the function; empty before they were saved, and in files of development versions.
    """

    name: str
    backbone: Backbone
    pool: int
    crop: CropSpec
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    licence: str = "unknown"
    text: str = ""
    weights_sha256: str = ""


class Model:
    """A network with all that is needed to use it: crop, card and device."""

    def __init__(self, net: AVNet, card: ModelCard, device: torch.device | str = "cpu") -> None:
        # Channels last: up to 1.5 times as fast on a CPU, and within a tenth of ONNX Runtime
        # (bench/predict.py).
        net = net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net = net.eval().requires_grad_(False)
        self.card = card
        self.device = torch.device(device)

    def predict(self, crops: torch.Tensor) -> torch.Tensor:
        """Crops (N, 3, S, S), RGB, 0..255 → valence and arousal, float32 (N, 2) in [-1, 1]."""
        return self.predict_with_features(crops)[0]

    @torch.inference_mode()
    def predict_with_features(self, crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and the features h (N, n_features) that they were read from, on the device."""
        if not len(crops):
            return torch.empty((0, 2)), torch.empty((0, self.net.n_features))
        features = self.net.encoder(self.card.crop.normalise(crops.to(self.device)))
        return self.net.regressor(features).clamp(-1, 1).float().cpu(), features


def save_model(
    path: Path, net: AVNet, card: ModelCard, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write network and card as one safetensors file, atomically. dtype: of the stored weights."""
    from safetensors.torch import save

    weights = {
        name: value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype)
        for name, value in net.state_dict().items()
    }
    card = replace(card, weights_sha256=weights_sha256(weights))
    metadata = {"format_version": FORMAT_VERSION, **asdict(card)}
    data = save(
        {name: value.contiguous() for name, value in weights.items()},
        # one entry alone: safetensors writes several in any order
        metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True)},
    )
    write_whole(path, lambda file: file.write_bytes(data))


def weights_sha256(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a state dict: of each weight's name, type, shape and bytes, by name."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        values = weight.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return digest.hexdigest()


def read_card(path: Path) -> ModelCard:
    """Read what a model file says of itself, without its weights.

    Raises ModelError when the file is missing, damaged, foreign or newer than this vafer.
    """
    return _parse_card(path, _read_metadata(path))


def load_model(path: Path, *, device: torch.device | str = "cpu") -> Model:
    """Rebuild a model from its file alone; nothing is unpickled. It is tried on a grey crop.

    Raises ModelError when the file is missing, damaged, foreign or newer than this vafer, or when
    the network cannot be run, or gives NaN.
    """
    card, weights = read_card(path), read_weights(path)
    try:
        net = AVNet(card.backbone, card.pool)
        net.load_state_dict({n: _at_full_precision(w) for n, w in weights.items()})
    except (RuntimeError, TypeError, ModelError) as error:
        raise ModelError(
            f"{path} does not hold the weights that its card promises "
            f"({card.backbone}, pool {card.pool}): {error}"
        ) from error
    side = card.crop.size
    try:
        model = Model(net, card, device)
        tried = model.predict(torch.full((1, 3, side, side), 127.5))
    except RuntimeError as error:  # a GPU that is full or busy raises it too
        on_cpu = str(device) == "cpu"
        raise ModelError(
            f"{path} cannot be run on crops of {side} pixels{'' if on_cpu else f' on {device}'}: "
            f"{error}{'' if on_cpu else '. Try --device cpu'}"
        ) from error
    if not tried.isfinite().all():
        raise ModelError(
            f"{path} gives NaN for a grey crop: its weights, or its card's mean and std, are of no "
            "use. Train or get it anew"
        )
    return model


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a model file, as they are stored.

    Raises ModelError where they are not those that were written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    promised = read_card(path).weights_sha256
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: its weights cannot be read: {error}") from error
    if promised and (found := weights_sha256(weights)) != promised:
        raise ModelError(
            f"{path} is damaged, or was changed: its weights have SHA-256 {found}, expected "
            f"{promised}. Get it anew; if it came with vafer, install that anew"
        )
    return weights


def _at_full_precision(weight: torch.Tensor) -> torch.Tensor:
    return weight.float() if weight.is_floating_point() else weight


def _read_metadata(path: Path) -> Mapping[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb"):  # safetensors says of each that it is not there
            pass
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such model file") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {why_unreadable(path, error)}") from error
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} cannot be read as a safetensors file ({error}): "
            "it is damaged or of another kind. Expected a model file written by vafer."
        ) from error


def _parse_card(path: Path, metadata: Mapping[str, str]) -> ModelCard:
    foreign = f"{path} is a safetensors file that vafer did not write"
    try:
        values = json.loads(metadata[METADATA_KEY])
        version = int(values.pop("format_version"))
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ModelError(f"{foreign}: its metadata lacks the model card.") from error
    if version > FORMAT_VERSION:
        raise ModelError(
            f"{path} has model format {version}, this vafer reads up to {FORMAT_VERSION}: "
            "install a newer vafer."
        )
    for key, (kind, expected) in CARD_VALUES.items():
        value = values.get(key, kind())
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ModelError(f"{path}: {key} in its card is {value!r:.40}, expected {expected}")
    try:
        return ModelCard(**{**values, "crop": CropSpec.from_dict(values["crop"])})
    except ModelError as error:
        raise ModelError(f"{path}: its card asks for what cannot be: {error}") from error
    except (KeyError, TypeError) as error:
        raise ModelError(f"{foreign}: its model card is incomplete ({error}).") from error
