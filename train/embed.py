"""A trained model or detector → the file that ships, with its card: figures and words.

    python -m train.embed runs/mine/model.safetensors vafer-alexnet112 --metrics model.json
    python -m train.embed runs/detector/detector.onnx vafer-faces --metrics detector.json
    python -m train.embed vafer/weights/vafer-faces.onnx vafer-faces

Writes into `vafer/weights/`, where the card in words lies as NAME.md; the third form puts it into
the file again after it was changed. Models are stored in half precision. METRICS.json is what the
benches write, `bench/model.py --json` and `bench/detector.py --json`; what the file says of its
scores already is kept where they say nothing of it.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vafer import store
from vafer.errors import UsageError, VaferError
from vafer.faces import Detector
from vafer.files import write_whole
from vafer.model import load_model, save_model, weights_sha256
from vafer.onnx_file import METADATA_KEY, WEIGHTS_SHA256, detector_card, onnx_weights_sha256

LICENCE = "Apache-2.0"
KINDS = (".safetensors", ".onnx")  # of models, of detectors


def embed(path: Path, name: str, metrics: dict[str, Any], folder: Path = store.WEIGHTS) -> Path:
    """Write a .safetensors or .onnx file as the embedded one called `name`; returns its path.

    folder: holds the card, `name`.md. Raises UsageError, ModelError, OSError.
    """
    if Path(name).name != name:
        raise UsageError(f"{name} is a path: expected the name of what ships")
    target = folder / f"{name}{path.suffix}"
    if not target.with_suffix(".md").is_file():
        raise UsageError(f"{target.with_suffix('.md')} is missing: expected the card in words")
    text = target.with_suffix(".md").read_text(encoding="utf-8")
    if not isinstance(metrics, dict):
        raise UsageError(f"the metrics are {metrics!r:.40}: expected a JSON object")
    if path.suffix not in KINDS:
        raise UsageError(f"{path}: expected a .safetensors or an .onnx file")
    for kind in KINDS:
        if kind != path.suffix and (other := target.with_suffix(kind)).exists():
            raise UsageError(f"{name} is {other.name}: expected a file of that kind")
    if path.suffix == ".safetensors":
        model = load_model(path)
        if "procedure" not in model.card.training:
            raise UsageError(
                f"{path} does not say how it was trained, so that nobody knows who may ship it: "
                "expected a model of vafer train"
            )
        stored = {
            key: value.half() if value.is_floating_point() else value
            for key, value in model.net.state_dict().items()
        }
        if not all(weight.isfinite().all() for weight in stored.values()):
            raise UsageError(f"{path} holds weights that half precision cannot")
        _check_metrics(metrics, "model", weights_sha256(stored), path)
        ours = store.find_detector(None, on_notice=print)  # whose landmarks cut the crops
        _check_metrics(metrics, "detector", onnx_weights_sha256(ours), ours)
        metrics = {**model.card.metrics, **metrics}
        card = replace(model.card, name=name, licence=LICENCE, metrics=metrics, text=text)
        save_model(target, model.net, card, dtype=torch.float16)
        return target
    import onnx

    Detector(path)  # refuses what is damaged
    old, weights = detector_card(path), onnx_weights_sha256(path)
    if not old:
        raise UsageError(f"{path} has no card: expected what python -m train.detector wrote")
    _check_metrics(metrics, "candidate", weights, path)
    new = {
        "name": name,
        "licence": LICENCE,
        "metrics": {**old.get("metrics", {}), **metrics},
        "text": text,
        WEIGHTS_SHA256: weights,
    }
    network = onnx.load_model(str(path))
    onnx.helper.set_model_props(network, {METADATA_KEY: json.dumps({**old, **new}, sort_keys=True)})
    write_whole(target, lambda file: onnx.save_model(network, str(file)))
    return target


def _check_metrics(metrics: dict[str, Any], key: str, weights: str, path: Path) -> None:
    """Refuse figures that are not of what ships. key: of what was scored. Raises UsageError."""
    if not metrics:
        return
    scored = metrics.get(key)
    found = scored.get("weights_sha256") if isinstance(scored, dict) else None
    if found != weights:
        raise UsageError(
            f"the metrics are of the weights {found}, those of {path} are {weights}: expected "
            "what the bench wrote of this file"
        )
    if metrics.get("one_look") or metrics.get("every", 1) != 1:
        raise UsageError(
            f"the metrics of {path} are of one look, or not of every frame: expected what the "
            "bench wrote without --one-look and --every"
        )


def _read_metrics(path: Path | None) -> Any:
    """What a bench wrote; nothing for None. Raises UsageError, OSError."""
    if path is None:
        return {}
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path} is no JSON ({error}): expected what a bench wrote") from error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("name")
    parser.add_argument("--metrics", type=Path, help="JSON that a bench wrote")
    arguments = parser.parse_args()
    try:
        print(embed(arguments.file, arguments.name, _read_metrics(arguments.metrics)))
    except (VaferError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
