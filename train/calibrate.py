"""The last layer of a model that was trained on graded expressions, fitted anew to their names.

    python -m train.calibrate model.safetensors FACES detector.onnx calibrated.safetensors

Graded labels lie nearer to each other than the points of the expressions' names, and a network that
is unsure draws them together further; neutral faces, which are easily taken for sad ones, it draws
below 0. So the last layer is fitted by least squares to the points of the names
(`train.sets.FACE_NORMS`), under the condition that faces named neutral and faces named happy lie,
on average, at theirs. No face that the model was not trained on takes part; those are scored again.
What it does to scores stands in vafer/weights/vafer-alexnet112.md.
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

from train.data import FaceSet, Split
from train.evaluation import Evaluation, crops_seen, one_line, predict_faces, results_of
from train.sets import FACE_NORMS, split_by_name
from vafer.errors import UsageError, VaferError
from vafer.model import Model, ModelCard, load_model, save_model
from vafer.onnx_file import onnx_weights_sha256
from vafer.store import choose_detector

MET = ("neutral", "happy")  # names whose points the means of their faces have
TOLERANCE = 1e-3  # of these means


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
    """The model with its last layer fitted to the faces that `split` trains on.

    Its card gets what was fitted to, and scores of the held-out faces in the place of its metrics.
    Raises UsageError where the conditions cannot be met.
    """
    expressions = np.concatenate([faces.expressions for faces in split.train])
    if missing := [name for name in MET if name not in expressions]:
        raise UsageError(f"no {' and no '.join(missing)} face to calibrate by")
    hidden = np.concatenate([_hidden(model, faces) for faces in split.train])
    inputs = np.column_stack([hidden, np.ones(len(hidden))])  # the last is the bias's
    points = np.array([FACE_NORMS[name] for name in expressions])
    means = np.array([inputs[expressions == name].mean(axis=0) for name in MET])
    wanted = np.array([FACE_NORMS[name] for name in MET])
    fitted = constrained_least_squares(inputs, points, means, wanted)
    if not np.allclose(means @ fitted, wanted, atol=TOLERANCE):
        raise UsageError(
            f"{model.card.name} cannot tell {' from '.join(MET)} faces: expected a trained model"
        )
    net = copy.deepcopy(model.net)
    last = net.regressor[-1]
    assert isinstance(last, nn.Linear)
    last.weight.copy_(torch.from_numpy(fitted[:-1].T))
    last.bias.copy_(torch.from_numpy(fitted[-1]))
    facts: dict[str, Any] = {
        "last_layer": "least squares to the points of the names",
        "n_faces": len(expressions),
        "means": dict(zip(MET, wanted.tolist(), strict=True)),
        "from_weights_sha256": model.card.weights_sha256,
    }
    card = replace(model.card, training=model.card.training | {"calibration": facts})
    changed = Model(net, card, model.device)
    scored = [Evaluation(faces, predict_faces(changed, faces)) for faces in split.held_out]
    return Model(net, replace(card, metrics=results_of(scored)), model.device)


def constrained_least_squares(
    inputs: np.ndarray, targets: np.ndarray, means: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Weights w (P, D) with the least |inputs w − targets|² among those of means w = wanted.

    Shapes: inputs (N, P), targets (N, D), means (C, P), wanted (C, D). By the Lagrangian's linear
    system; of least norm where inputs leave a choice, and not met where means cannot be.
    """
    gram, none = inputs.T @ inputs, np.zeros((len(means), len(means)))
    system = np.block([[gram, means.T], [means, none]])
    right = np.concatenate([inputs.T @ targets, wanted])
    return np.linalg.lstsq(system, right, rcond=None)[0][: inputs.shape[1]]


def _hidden(model: Model, faces: FaceSet) -> np.ndarray:
    """What the last layer is given of each face: float64 (N, 8)."""
    before_last = model.net.regressor[:-1]
    found = [before_last(model.predict_with_features(c)[1]) for c in crops_seen(model, faces)]
    return torch.cat(found).double().cpu().numpy()


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
    print(f"{out}: fitted to {facts['n_faces']:,} faces\n{one_line(found.card.metrics)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
