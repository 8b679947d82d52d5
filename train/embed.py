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

from vafer.catalogue import detector_card
from vafer.errors import UsageError, VaferError
from vafer.files import write_whole
from vafer.model import load_model, save_model
from vafer.onnx_file import METADATA_KEY
from vafer.store import WEIGHTS

LICENCE = "Apache-2.0"


def embed(path: Path, name: str, metrics: dict[str, Any], folder: Path = WEIGHTS) -> Path:
    """Write a .safetensors or .onnx file as the embedded one called `name`; returns its path.

    folder: holds the card, `name`.md. Raises UsageError, ModelError; OSError for the card.
    """
    target = folder / f"{name}{path.suffix}"
    text = target.with_suffix(".md").read_text(encoding="utf-8")
    if path.suffix == ".safetensors":
        model = load_model(path)
        metrics = {**model.card.metrics, **metrics}
        card = replace(model.card, name=name, licence=LICENCE, metrics=metrics, text=text)
        save_model(target, model.net, card, dtype=torch.float16)
        return target
    if path.suffix != ".onnx":
        raise UsageError(f"{path}: expected a .safetensors or an .onnx file")
    import onnx

    old = detector_card(path)
    new = {
        "name": name,
        "licence": LICENCE,
        "metrics": {**old.get("metrics", {}), **metrics},
        "text": text,
    }
    network = onnx.load_model(str(path))
    onnx.helper.set_model_props(network, {METADATA_KEY: json.dumps({**old, **new}, sort_keys=True)})
    write_whole(target, lambda file: onnx.save_model(network, str(file)))
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("name")
    parser.add_argument("--metrics", type=Path, help="JSON that a bench wrote")
    arguments = parser.parse_args()
    try:
        text = arguments.metrics.read_text(encoding="utf-8") if arguments.metrics else "{}"
        print(embed(arguments.file, arguments.name, json.loads(text)))
    except (VaferError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
