"""The last layer of a model that was trained on named expressions, fitted anew to their names.

    python -m train.calibrate model.safetensors FACES detector.onnx calibrated.safetensors

Graded labels lie nearer to each other than the points that they are graded between, and a network
that is unsure of a face draws it towards the mean of all. So the last layer is fitted by least
squares to the point of each face's expression (`train.sets.FACE_NORMS`), under the condition that
the mean prediction of the faces named neutral, and of those named happy, is theirs. Only faces that
the model was trained on take part; the held-out ones are scored. What it does to scores stands in
vafer/weights/vafer-alexnet112.md.
"""

import argparse
import copy
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from train.data import FaceSet, Split
from train.evaluation import Evaluation, crops_seen, one_line, predict_faces, results_of
from train.sets import FACE_NORMS, fold_held_out, split_by_name
from vafer.errors import UsageError, VaferError
from vafer.model import Model, load_model, read_card, save_model
from vafer.onnx_file import onnx_weights_sha256
from vafer.store import choose_detector, find_model

ANCHORS = ("neutral", "happy")  # expressions whose mean prediction is fixed
TOLERANCE = 0.01  # of these means; what is clipped to [-1, 1] moves them


def split_of(model: Path, faces: Path, detector: Path, cache: Path | None = None) -> Split:
    """The faces that a model was trained on, and those that it held out.

    model: its file. faces: folder of FER2013 and LFW. detector: whose landmarks cut the crops.
    Raises UsageError where its card says that it was trained on something else, or on other faces,
    or that it was calibrated before; ModelError.
    """
    card = read_card(model)
    if "calibration" in card.training:
        raise UsageError(f"{model} is calibrated already: expected a model as it was trained")
    held_out = fold_held_out(card.training)
    if held_out is None:
        raise UsageError(
            f"{model} does not say that it was trained on the dataset faces, and which fold it "
            "held out: expected a model of vafer train that does"
        )
    fold, n_folds = held_out
    split = split_by_name(
        card.crop, faces, detector, cache, fold=fold, n_folds=n_folds, on_notice=_tell
    )
    try:
        trained_on = {name: int(of["faces"]) for name, of in card.training["sets"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        trained_on = {}
    for part in split.train:
        if (n := trained_on.get(part.name, 0)) != len(part):
            raise UsageError(
                f"{faces} holds {len(part):,} faces of {part.name}, {model} was trained on {n:,}: "
                "expected the tables that it was trained on"
            )
    return split


def calibrated(model: Model, split: Split, detector_sha256: str = "") -> Model:
    """The model with its last layer fitted to the faces that `split` trains on, all of them named.

    detector_sha256: of the weights of the detector whose landmarks cut the crops. The card gets
    what was fitted to, and the scores of the held-out faces in the place of its metrics; its words,
    which are of the model before, are left out. Raises UsageError where the conditions cannot be
    met.
    """
    expressions = np.concatenate([faces.expressions for faces in split.train])
    if missing := [name for name in ANCHORS if name not in expressions]:
        raise UsageError(
            f"no {' and no '.join(missing)} face is among the {len(expressions):,} that were "
            "trained on: expected both to calibrate by"
        )
    hidden = np.concatenate([_hidden(model, faces) for faces in split.train])
    if not np.isfinite(hidden).all():
        raise UsageError(f"{model.card.name} gives NaN for some faces: train it anew")
    inputs = np.column_stack([hidden, np.ones(len(hidden))])  # the last is the bias's
    targets = np.array([FACE_NORMS[name] for name in expressions])
    means = np.array([inputs[expressions == name].mean(axis=0) for name in ANCHORS])
    wanted = np.array([FACE_NORMS[name] for name in ANCHORS])
    fitted = constrained_least_squares(inputs, targets, means, wanted)
    read = np.clip(inputs @ fitted, -1, 1)
    reached = np.array([read[expressions == name].mean(axis=0) for name in ANCHORS])
    if not np.allclose(reached, wanted, atol=TOLERANCE):
        raise UsageError(
            f"{model.card.name} tells {' from '.join(ANCHORS)} faces too badly to be calibrated: "
            f"their means would be {reached.round(2).tolist()}, expected {wanted.tolist()}"
        )
    net = copy.deepcopy(model.net)
    last = net.regressor[-1]
    assert isinstance(last, nn.Linear)
    last.weight.copy_(torch.from_numpy(fitted[:-1].T))
    last.bias.copy_(torch.from_numpy(fitted[-1]))
    facts = {
        "last_layer": "least squares to the points of the expressions",
        "n_faces": len(expressions),
        "means": dict(zip(ANCHORS, wanted.tolist(), strict=True)),
        "from_weights_sha256": model.card.weights_sha256,
        "detector_weights_sha256": detector_sha256,
    }
    changed = Model(net, model.card)
    scored = [Evaluation(faces, predict_faces(changed, faces)) for faces in split.held_out]
    changed.card = replace(
        model.card,
        training=model.card.training | {"calibration": facts},
        metrics=results_of(scored),
        text="",
    )
    return changed


def constrained_least_squares(
    inputs: np.ndarray, targets: np.ndarray, means: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Weights w (P, D) with the least |inputs w − targets|² among those of means w = wanted.

    Shapes: inputs (N, P), targets (N, D), means (C, P), wanted (C, D). What the conditions leave
    free, their null space, is fitted as ever (Golub & Van Loan, Matrix Computations, 4th edition,
    section 6.2.3). Where means cannot be wanted, they are as near as can be.
    """
    met = np.linalg.lstsq(means, wanted, rcond=None)[0]
    _, sizes, directions = np.linalg.svd(means)
    free = directions[len(sizes) :].T
    fitted = np.linalg.lstsq(inputs @ free, targets - inputs @ met, rcond=None)[0]
    return np.asarray(met + free @ fitted)


@torch.inference_mode()
def _hidden(model: Model, faces: FaceSet) -> np.ndarray:
    """What the last layer is given of each face: float64 (N, 8)."""
    before_last = nn.Sequential(model.net.encoder, *model.net.regressor[:-1]).eval()
    found = [before_last(model.card.crop.normalise(crops)) for crops in crops_seen(model, faces)]
    return torch.cat(found).double().numpy()


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="its file, or the run folder of its training")
    parser.add_argument("faces", type=Path, help="folder of FER2013 and LFW with expressions")
    parser.add_argument("detector", help="whose landmarks cut the crops: a name, or an ONNX file")
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--cache", type=Path, help="where crops are kept, instead of $VAFER_DATA/crops"
    )
    arguments = parser.parse_args()
    try:
        out = arguments.out
        if out.exists():
            raise UsageError(f"{out} is there already: name another file, or remove it")
        if out.suffix != ".safetensors" or not out.parent.is_dir():
            raise UsageError(f"{out}: expected a name that ends in .safetensors, in a folder")
        if not os.access(out.parent, os.W_OK):
            raise UsageError(f"{out} cannot be written: expected a folder that may be written to")
        path = find_model(arguments.model, on_notice=_tell)
        model = load_model(path)
        detector = choose_detector(arguments.detector, on_notice=_tell).path
        split = split_of(path, arguments.faces, detector.absolute(), arguments.cache)
        _tell(
            f"fitting to {sum(map(len, split.train)):,} faces, then scoring "
            f"{sum(map(len, split.held_out)):,} that were held out: minutes on a CPU"
        )
        found = calibrated(model, split, onnx_weights_sha256(detector))
        save_model(out, found.net, replace(found.card, name=out.stem))
    except (VaferError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    n_faces = found.card.training["calibration"]["n_faces"]
    print(f"{out}: fitted to {n_faces:,} faces\n{one_line(found.card.metrics)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
