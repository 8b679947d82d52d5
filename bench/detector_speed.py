"""The size of face detectors, and their speed, taking turns."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime

from bench.detector_agreement import HELD_OUT
from bench.tables import table
from vafer.faces import Detector
from vafer.probe import probe
from vafer.video import VideoReader

CANVASES = [(640, 384), (640, 640), (320, 192)]  # width, height
N_ROUNDS, N_CALLS = 15, 5


def size_of(path: Path) -> list[str]:
    """Bytes, parameters and multiply–adds of the convolutions at 640×640, or – if unknown."""
    model = onnx.load(str(path))
    graph = model.graph
    shapes = {weight.name: list(weight.dims) for weight in graph.initializer}
    n_weights = sum(
        int(np.prod(weight.dims))
        for weight in graph.initializer
        if weight.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    )
    # Sizes that the file declares for its outputs may be those of another input.
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    for axis, size in enumerate((1, 3, 640, 640)):
        graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for value in [*inferred.value_info, *inferred.output]:
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    macs = 0.0
    for node in graph.node:
        if node.op_type == "Conv":
            kernel, out = shapes.get(node.input[1], [0]), shapes.get(node.output[0], [0])
            one = int(np.prod(kernel[1:]) * np.prod(out[1:]))  # of one picture
            macs = macs + one if one and len(out) == 4 else -np.inf
    cells = [f"{path.stat().st_size / 1e6:.2f} MB", f"{n_weights / 1e3:.0f} k"]
    return [*cells, f"{macs / 1e6:.0f} M" if macs > 0 else "–"]


def session(path: Path, n_threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def network(path: Path, n_threads: int, canvas: tuple[int, int]) -> Callable[[], object] | None:
    """One call of the network alone; None where its input is fixed to another size."""
    loaded = session(path, n_threads)
    given = loaded.get_inputs()[0]
    width, height = canvas
    for declared, wanted in zip(given.shape[1:], (3, height, width), strict=True):
        if isinstance(declared, int) and declared != wanted:
            return None
    picture = np.random.default_rng(0).uniform(-1, 1, (1, 3, height, width)).astype(np.float32)
    return lambda: loaded.run(None, {given.name: picture})


def milliseconds(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median ms of a call, the ways taking turns."""
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    for call in ways.values():
        call()
    for _ in range(N_ROUNDS):
        for name, call in ways.items():
            started = time.perf_counter()
            for _ in range(N_CALLS):
                call()
            rounds[name].append((time.perf_counter() - started) / N_CALLS * 1e3)
    return {name: statistics.median(values) for name, values in rounds.items()}


def scene(videos: Path, canvas: tuple[int, int]) -> np.ndarray:
    """A frame of a held-out recording at that size: decoding boxes costs only where faces are."""
    for name in HELD_OUT:
        if (videos / name).is_file():
            frame = next(iter(VideoReader(probe(videos / name))))
            return cv2.resize(frame.image, canvas, interpolation=cv2.INTER_AREA)
    raise SystemExit(f"{videos} holds none of {', '.join(HELD_OUT)}: expected one to time with")


def detecting(detector: Detector, image: np.ndarray) -> Callable[[], object]:
    return lambda: detector.detect(image)


def show_speed(
    detectors: Mapping[str, Detector], candidate: str, base: str, videos: Path
) -> dict[str, Any]:
    """Prints the sizes of the files and the times of a call; base: whose speed is the measure."""
    table(
        "Sizes",
        ["detector", "file", "parameters", "multiply–adds at 640×640"],
        [[name, *size_of(detector.path)] for name, detector in detectors.items()],
    )
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows, ratios = [], list[dict[str, Any]]()

    def time_in_turn(size: str, what: str, ways: dict[str, Callable[[], object]]) -> None:
        times = milliseconds(ways)
        cells = [f"{value:.2f} ({value / times[base]:.2f})" for value in times.values()]
        rows.append([size, what, *cells])
        ratio = round(times[candidate] / times[base], 3)
        ratios.append({"canvas": size, "what": what, f"time over {base}'s": ratio})

    for canvas in CANVASES:
        size = f"{canvas[0]}×{canvas[1]}"
        for n_threads, label in ((1, "network, 1 thread"), (0, "network, all threads")):
            ways = {
                name: network(detector.path, n_threads, canvas)
                for name, detector in detectors.items()
            }
            fitting = {name: call for name, call in ways.items() if call is not None}
            if len(fitting) < len(ways):
                fixed = ", ".join(name for name in ways if name not in fitting)
                print(f"\n{size}: the input of {fixed} has another size; not timed.")
                continue
            time_in_turn(size, label, fitting)
        image = scene(videos, canvas)
        whole = {name: detecting(detector, image) for name, detector in detectors.items()}
        time_in_turn(size, "Detector.detect", whole)
    title = f"ms per call (ratio to {base}), {platform.machine()} with {n_cores} cores"
    table(title, ["canvas", "what", *detectors], rows)
    return {"speed": ratios}
