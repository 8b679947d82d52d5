"""Predictions on a CPU: PyTorch against ONNX Runtime and compiled PyTorch.

    python bench/predict.py [MODEL ...] [--batch 64] [--repeats 15]

Models are embedded names or files; without any, an untrained one of 224 pixels beside the embedded.
All ways run in turn, each on one thread and on all; medians, ratios to PyTorch, and how far values
are apart.
"""

import argparse
import io
import statistics
import time
import warnings
from collections.abc import Callable

# vafer first: it tells ONNX Runtime to keep to itself, which is read when that is imported.
import vafer  # noqa: F401

# isort: split

import numpy as np
import onnxruntime
import torch

from vafer.crops import CropSpec
from vafer.model import AVNet, Model, ModelCard, load_model
from vafer.staged import available_cores
from vafer.store import find_model

Way = Callable[[torch.Tensor], np.ndarray]


def by_onnxruntime(model: Model, batch: int, n_threads: int) -> Way:
    file = io.BytesIO()
    size = model.card.crop.size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.net, (torch.zeros(batch, 3, size, size),), file, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    session = onnxruntime.InferenceSession(
        file.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    def run(crops: torch.Tensor) -> np.ndarray:
        found: np.ndarray = session.run(None, {name: model.card.crop.normalise(crops).numpy()})[0]
        return found.clip(-1, 1)

    return run


def by_torch(model: Model, n_threads: int, *, change: Callable[[AVNet], object] | None) -> Way:
    net = AVNet(model.card.backbone, model.card.pool).eval()
    net.load_state_dict(model.net.state_dict())
    changed = change(net) if change else net
    assert callable(changed)

    def run(crops: torch.Tensor) -> np.ndarray:
        torch.set_num_threads(n_threads)
        with torch.inference_mode():
            found: torch.Tensor = changed(model.card.crop.normalise(crops))
        return found.clamp(-1, 1).numpy()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    models = [load_model(find_model(name)) for name in arguments.models or [None]]
    if not arguments.models:
        torch.manual_seed(0)
        card = ModelCard("untrained, 224 pixels", "alexnet", 6, CropSpec(size=224))
        models.append(Model(AVNet("alexnet", 6), card))
    print("| model | threads | way | faces/s | ratio | values apart, largest |")
    print("|---|--:|---|--:|--:|--:|")
    for model in models:
        size = model.card.crop.size
        crops = torch.rand(arguments.batch, 3, size, size) * 255
        for n_threads in sorted({1, available_cores()}):
            ways = {
                "PyTorch": by_torch(model, n_threads, change=None),
                "PyTorch, channels last": by_torch(
                    model, n_threads, change=lambda net: net.to(memory_format=torch.channels_last)
                ),
                "PyTorch, compiled": by_torch(model, n_threads, change=torch.compile),
                "ONNX Runtime": by_onnxruntime(model, arguments.batch, n_threads),
            }
            values = {name: way(crops) for name, way in ways.items()}
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(arguments.repeats):
                for name, way in ways.items():
                    started = time.perf_counter()
                    way(crops)
                    seconds[name].append(time.perf_counter() - started)
            base = statistics.median(seconds["PyTorch"])
            for name in ways:
                median = statistics.median(seconds[name])
                apart = np.abs(values[name] - values["PyTorch"]).max()
                print(
                    f"| {model.card.name} | {n_threads} | {name} | {arguments.batch / median:,.0f} "
                    f"| {base / median:.2f} | {apart:.1e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
