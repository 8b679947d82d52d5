"""Arousal of a model that was trained on expressions, set by two of them.

    python -m train.calibrate model.safetensors FACES detector.onnx calibrated.safetensors

A network that is unsure says something in between, so that neutral faces read aroused and excited
ones too little. Its last layer is scaled and shifted so that, on average over the faces that it was
trained on, a neutral one reads 0 and a happy one what it is labelled (`train.sets.FACE_NORMS`). No
face that it is scored on takes part; these are scored again. Valence stays as it is: no line
brings all expressions nearer to their labels there (docs/ablation.md).
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from train.augment import middle
from train.config import DataConfig, read_config
from train.data import FaceSet, Split
from train.evaluation import Evaluation, results_of
from train.feed import Feed
from train.sets import FACE_NORMS, load_split
from vafer.crops import CropSpec
from vafer.errors import UsageError, VaferError
from vafer.model import Model, ModelCard, load_model, save_model

AROUSAL = 1  # column of predictions and labels, row of the last layer
LOW, HIGH = "neutral", "happy"
BATCH = 256

Change = Callable[[torch.Tensor, int], torch.Tensor]  # widened crops, 0..255, size → their middle


def split_by_name(crop: CropSpec, faces: Path, detector: Path, cache: Path | None = None) -> Split:
    """The faces of the training `faces`, split as it does; all labels are the names' norms.

    faces: folder of FER2013 and LFW. detector: whose landmarks cut the crops. cache: of these.
    """
    config = read_config("faces", [f"data.root={faces}", f"data.detector={detector}"])
    data = DataConfig(
        dataset="faces",
        root=faces,
        detector=detector,
        cache=cache,
        fold=config.data.fold,
        n_folds=config.data.n_folds,
        border=config.data.border,
    )
    return load_split(replace(config, data=data, crop=crop))


def predict(model: Model, faces: FaceSet, change: Change = middle) -> np.ndarray:
    """Valence and arousal (N, 2) of the middles of widened crops."""
    feed = Feed([faces], torch.device("cpu"))
    batches = np.array_split(np.arange(len(feed)), len(feed) // BATCH + 1)
    size = model.card.crop.size
    changed = (
        change(crops.float(), size).round().clamp(0, 255).expand(-1, 3, -1, -1)
        for crops in feed.batches(batches)
    )
    return torch.cat([model.predict(crops) for crops in changed]).numpy()


def calibrated(model: Model, split: Split) -> ModelCard:
    """Calibrate a model, in place, by what `split` trains on; returns its card with new scores.

    Raises UsageError where that was done before, or where the split or the model does not allow it.
    """
    if "calibration" in model.card.training:
        raise UsageError(f"{model.card.name} is calibrated: expected a model as it was trained")
    expressions = np.concatenate([faces.expressions for faces in split.train])
    missing = sorted({LOW, HIGH} - {*expressions})
    if missing:
        raise UsageError(f"no {' and no '.join(missing)} face to calibrate by")
    arousal = np.concatenate([predict(model, faces)[:, AROUSAL] for faces in split.train])
    low, high = (float(arousal[expressions == name].mean()) for name in (LOW, HIGH))
    if not low < high:
        raise UsageError(
            f"{model.card.name} gives {LOW} faces an arousal of {low:.3f}, {HIGH} ones {high:.3f}: "
            "expected more of these"
        )
    scale = FACE_NORMS[HIGH][AROUSAL] / (high - low)
    last = model.net.regressor[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight[AROUSAL] *= scale
        last.bias[AROUSAL] = scale * (last.bias[AROUSAL] - low)
    facts: dict[str, Any] = {
        "arousal": f"{scale:.4f} × (arousal − {low:.4f})",
        "detector_sha256": split.facts["detector_sha256"],
    }
    return replace(
        model.card,
        training=model.card.training | {"calibration": facts},
        metrics=results_of([Evaluation(faces, predict(model, faces)) for faces in split.held_out]),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("faces", type=Path, help="folder of FER2013 and LFW with expressions")
    parser.add_argument("detector", type=Path, help="whose landmarks cut the crops")
    parser.add_argument("out", type=Path)
    parser.add_argument("--cache", type=Path, help="where crops are kept, instead of data/crops")
    arguments = parser.parse_args()
    try:
        model = load_model(arguments.model)
        split = split_by_name(model.card.crop, arguments.faces, arguments.detector, arguments.cache)
        card = calibrated(model, split)
        save_model(arguments.out, model.net, card)
    except (VaferError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: arousal = {card.training['calibration']['arousal']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
