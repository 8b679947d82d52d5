"""ONNX graphs of convolutional detectors run by PyTorch, so that a GPU needs no second runtime.

Only the operators that exports of SCRFD (insightface's packs and ours) are made of, as they use
them. Attributes that are not among the parameters of an operator here are errors, never ignored.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from vafer.errors import ModelError
from vafer.onnx_file import read_onnx

Operator = Callable[..., torch.Tensor]


class Graph:
    """The graph of an ONNX file on a device: calling it with its one input gives its outputs.

    Tensors of whole numbers (shapes and what is computed of them) stay on the CPU, so that nothing
    waits for the device. Raises ModelError when the file is none, or has operators that are not
    known here. What else cannot be run shows in the first call, as any error; see `vafer.scrfd`.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        import onnx
        from onnx import numpy_helper

        graph = read_onnx(path).graph
        self._constants = {
            tensor.name: _on(device, numpy_helper.to_array(tensor)) for tensor in graph.initializer
        }
        inputs = [i for i in graph.input if i.name not in self._constants]
        if len(inputs) != 1:
            raise ModelError(f"{path} has {len(inputs)} inputs: expected one")
        self._input = inputs[0].name
        sides = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim[2:]]
        if any(sides):
            raise ModelError(f"{path} takes pictures of {sides} pixels alone: expected any size")
        self.outputs = [output.name for output in graph.output]
        self._steps: list[tuple[Operator, dict[str, Any], list[str], str]] = []
        for node in graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                value = numpy_helper.to_array(attributes["value"])
                self._constants[node.output[0]] = _on(device, value)
                continue
            operator = OPERATORS.get(node.op_type)
            if operator is None or len(node.output) != 1:
                raise ModelError(
                    f"{path} has the operator {node.op_type}, which is not among those that run on "
                    f"this device: {', '.join(sorted(OPERATORS))}"
                )
            self._steps.append((operator, attributes, list(node.input), node.output[0]))
        last = {name: i for i, (_, _, names, _) in enumerate(self._steps) for name in names}
        self._over: list[list[str]] = [[] for _ in self._steps]  # what no later step needs
        for name, i in last.items():
            if name and name not in self._constants and name not in self.outputs:
                self._over[i].append(name)

    @torch.inference_mode()
    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        values = {**self._constants, self._input: x}
        for (operator, attributes, names, output), over in zip(
            self._steps, self._over, strict=True
        ):
            arguments = [values[name] if name else None for name in names]
            values[output] = operator(*arguments, **attributes)
            for name in over:
                del values[name]
        return [values[name] for name in self.outputs]


def _on(device: torch.device | str, array: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(array))
    return tensor.to(device) if tensor.is_floating_point() else tensor


def _conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    auto_pad: bytes = b"NOTSET",
) -> torch.Tensor:
    _expect(auto_pad == b"NOTSET", f"Conv with auto_pad {auto_pad!r}")
    x, padding = _padded(x, pads)
    return F.conv2d(x, weight, bias, tuple(strides), padding, tuple(dilations), group)


def _padded(
    x: torch.Tensor, pads: Sequence[int], value: float = 0.0
) -> tuple[torch.Tensor, tuple[int, int]]:
    """ONNX's top, left, bottom, right: what a layer pads by itself, and x with the rest."""
    top, left, bottom, right = pads
    if (top, left) == (bottom, right):
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom), value=value), (0, 0)


def _max_pool(
    x: torch.Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    ceil_mode: int = 0,
    storage_order: int = 0,
    auto_pad: bytes = b"NOTSET",
) -> torch.Tensor:
    _expect(auto_pad == b"NOTSET", f"MaxPool with auto_pad {auto_pad!r}")
    _expect(set(dilations) == {1}, f"MaxPool with dilations {[*dilations]}")
    x, padding = _padded(x, pads, -torch.inf)
    return F.max_pool2d(x, tuple(kernel_shape), tuple(strides), padding, ceil_mode=bool(ceil_mode))


def _average_pool(
    x: torch.Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: bytes = b"NOTSET",
) -> torch.Tensor:
    top, left, bottom, right = pads
    _expect(auto_pad == b"NOTSET", f"AveragePool with auto_pad {auto_pad!r}")
    _expect((top, left) == (bottom, right), f"AveragePool with pads {[*pads]}")
    return F.avg_pool2d(
        x,
        tuple(kernel_shape),
        tuple(strides),
        (top, left),
        ceil_mode=bool(ceil_mode),
        count_include_pad=bool(count_include_pad),
    )


def _resize(
    x: torch.Tensor,
    roi: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    sizes: torch.Tensor | None = None,
    *,
    mode: bytes = b"nearest",
    coordinate_transformation_mode: bytes = b"half_pixel",
    nearest_mode: bytes = b"round_prefer_floor",
    cubic_coeff_a: float = 0.0,
) -> torch.Tensor:
    how = (mode, coordinate_transformation_mode, nearest_mode)
    _expect(how == (b"nearest", b"asymmetric", b"floor"), f"Resize by {how}")
    if sizes is not None and sizes.numel():
        height, width = sizes.tolist()[2:]
    else:
        assert scales is not None
        height, width = (
            int(side * scale) for side, scale in zip(x.shape[2:], scales.tolist()[2:], strict=True)
        )
    return F.interpolate(x, size=(height, width), mode="nearest")


def _reshape(x: torch.Tensor, shape: torch.Tensor, *, allowzero: int = 0) -> torch.Tensor:
    sides = shape.tolist()
    if not allowzero:
        sides = [x.shape[i] if side == 0 else side for i, side in enumerate(sides)]
    return x.reshape(sides)


def _slice(
    x: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    axes: torch.Tensor | None = None,
    steps: torch.Tensor | None = None,
) -> torch.Tensor:
    along = axes.tolist() if axes is not None else range(len(starts))
    by = steps.tolist() if steps is not None else [1] * len(starts)
    _expect(min(by) > 0, f"Slice with steps {by}")
    for axis, start, end, step in zip(along, starts.tolist(), ends.tolist(), by, strict=True):
        at = [slice(None)] * x.ndim
        at[axis] = slice(start, end, step)
        x = x[tuple(at)]
    return x


def _gather(x: torch.Tensor, indices: torch.Tensor, *, axis: int = 0) -> torch.Tensor:
    axis %= x.ndim
    found = x.index_select(axis, indices.reshape(-1).to(x.device) % x.shape[axis])
    return found.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _unsqueeze(
    x: torch.Tensor, where: torch.Tensor | None = None, *, axes: Sequence[int] = ()
) -> torch.Tensor:
    new = [*axes] if where is None else where.tolist()  # an attribute until opset 13
    for axis in sorted(axis % (x.ndim + len(new)) for axis in new):
        x = x.unsqueeze(axis)
    return x


def _clip(
    x: torch.Tensor, low: torch.Tensor | None = None, high: torch.Tensor | None = None
) -> torch.Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _cast(x: torch.Tensor, *, to: int) -> torch.Tensor:
    return x.to({1: torch.float32, 6: torch.int32, 7: torch.int64}[to])


def _expect(holds: bool, found: str) -> None:
    if not holds:
        raise ModelError(f"{found} is not among what runs on this device")


OPERATORS: dict[str, Operator] = {
    "Add": lambda a, b: a + b,
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda *parts, axis: torch.cat(parts, dim=axis),
    "Conv": _conv,
    "Exp": torch.exp,
    "Flatten": lambda x, axis=1: x.reshape(int(np.prod(x.shape[:axis])), -1),
    "Gather": _gather,
    "MaxPool": _max_pool,
    "Mul": lambda a, b: a * b,
    "Relu": torch.relu,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": lambda x: torch.tensor(x.shape),
    "Sigmoid": torch.sigmoid,
    "Slice": _slice,
    "Sub": lambda a, b: a - b,
    "Transpose": lambda x, perm: x.permute(tuple(perm)),
    "Unsqueeze": _unsqueeze,
}
