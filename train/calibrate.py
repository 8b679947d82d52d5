"""Arousal of a model that was trained on graded expressions, set by two of them.

    python -m train.calibrate model.safetensors FACES detector.onnx calibrated.safetensors

Graded labels lie nearer to each other than the points of the expressions' names, and a network that
is unsure draws them together further. So the last layer is scaled and shifted until arousal is, on
average over the faces that were trained on, that of the name where it is `neutral`, which is 0, and
where it is `happy` (`train.sets.FACE_NORMS`). No face that the model was not trained on takes part;
those are scored again. What it does to scores stands in vafer/weights/vafer-alexnet112.md.
"""

import argparse
import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from train.data import Split
from train.evaluation import Evaluation, predict_faces, results_of
from train.sets import FACE_NORMS, split_by_name
from vafer.errors import UsageError, VaferError
from vafer.model import Model, ModelCard, load_model, save_model
from vafer.onnx_file import onnx_weights_sha256
from vafer.store import choose_detector

AROUSAL = 1  # column of predictions and labels, row of the last layer
LOW, HIGH = "neutral", "happy"


def split_of(card: ModelCard, faces: Path, detector: Path, cache: Path | None = None) -> Split:
    """The faces that a model was trained on, and those that it held out.

    faces: folder of FER2013 and LFW. detector: whose landmarks cut the crops. Raises UsageError
    where its card says that it was trained on something else, or that it was calibrated before.
    """
    if "calibration" in card.training:
        raise UsageError(f"{card.name} is calibrated: expected a model as it was trained")
    try:
        data = card.training["procedure"]["data"]
        found = f"dataset {data['dataset']}, labels {data['labels']}"
        fold, n_folds = int(data["fold"]), int(data["n_folds"])
    except (KeyError, TypeError, ValueError):
        found = "what its card does not say"
    if found != "dataset faces, labels graded":
        raise UsageError(
            f"{card.name} was trained on {found}: expected dataset faces, labels graded"
        )
    return split_by_name(
        card.crop,
        faces,
        detector,
        cache,
        fold=fold,
        n_folds=n_folds,
        on_notice=_tell,
    )


def calibrated(model: Model, split: Split) -> Model:
    """The model with its arousal set by the faces that `split` trains on.

    Its card gets the line, and scores of the held-out faces in the place of its metrics. Raises
    UsageError where no line can be drawn.
    """
    expressions = np.concatenate([faces.expressions for faces in split.train])
    missing = sorted({LOW, HIGH} - {*expressions})
    if missing:
        raise UsageError(f"no {' and no '.join(missing)} face to calibrate by")
    arousal = np.concatenate([predict_faces(model, faces)[:, AROUSAL] for faces in split.train])
    low, high = (float(arousal[expressions == name].mean()) for name in (LOW, HIGH))
    if not low < high:
        raise UsageError(
            f"{model.card.name} gives {LOW} faces an arousal of {low:.3f}, {HIGH} ones {high:.3f}: "
            "expected more of these"
        )
    scale = FACE_NORMS[HIGH][AROUSAL] / (high - low)
    net = copy.deepcopy(model.net)
    last = net.regressor[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight[AROUSAL] *= scale
        last.bias[AROUSAL] = scale * (last.bias[AROUSAL] - low)
    line: dict[str, Any] = {"arousal": f"{scale:.4f} × (arousal − {low:.4f})"}
    changed = Model(net, replace(model.card, training=model.card.training | {"calibration": line}))
    scored = [Evaluation(faces, predict_faces(changed, faces)) for faces in split.held_out]
    return Model(net, replace(changed.card, metrics=results_of(scored)))


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("faces", type=Path, help="folder of FER2013 and LFW with expressions")
    parser.add_argument("detector", help="whose landmarks cut the crops: a name, or an ONNX file")
    parser.add_argument("out", type=Path)
    parser.add_argument("--cache", type=Path, help="where crops are kept, instead of data/crops")
    arguments = parser.parse_args()
    try:
        out = arguments.out
        if out.exists():
            raise UsageError(f"{out} is there already: name another file, or remove it")
        if out.suffix != ".safetensors" or not out.parent.is_dir():
            raise UsageError(f"{out}: expected a name that ends in .safetensors, in a folder")
        model = load_model(arguments.model)
        detector = choose_detector(arguments.detector, on_notice=_tell).path
        split = split_of(model.card, arguments.faces, detector.absolute(), arguments.cache)
        found = calibrated(model, split)
        facts = found.card.training["calibration"]
        facts["detector_weights_sha256"] = onnx_weights_sha256(detector)
        save_model(out, found.net, found.card)
    except (VaferError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: arousal = {facts['arousal']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
