"""Reading ONNX files, and telling what is in them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vafer.errors import ModelError

METADATA_KEY = "vafer"  # of a file's metadata_props: the card of a detector of ours, as JSON
WEIGHTS_SHA256 = "weights_sha256"  # of that card

if TYPE_CHECKING:
    import onnx


def read_onnx(path: Path) -> "onnx.ModelProto":
    """What an ONNX file holds.

    Raises ModelError where it is none, holds no network, or keeps weights in other files, which no
    digest of the file covers.
    """
    import onnx
    from onnx.external_data_helper import uses_external_data

    expected = "Expected a face detector such as insightface's det_10g.onnx or a YuNet export"
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}. {expected}") from error
    except Exception as error:  # protobuf's own, among others
        raise ModelError(
            f"{path} cannot be read as an ONNX file: it is damaged, or of another kind "
            f"({' '.join(str(error).split())}). {expected}"
        ) from error
    if not model.graph.node:
        found = "is empty" if path.stat().st_size == 0 else "is an ONNX file without a network"
        raise ModelError(f"{path} {found}. {expected}")
    if any(map(uses_external_data, _tensors(model.graph))):
        raise ModelError(
            f"{path} keeps its weights in other files: expected one file. To make one: "
            f"onnx.save_model(onnx.load_model({path.name!r}), 'whole.onnx')"
        )
    return model


def _tensors(graph: "onnx.GraphProto") -> Iterator["onnx.TensorProto"]:
    """All that a graph and those inside it hold."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def detector_card(path: Path) -> dict[str, Any]:
    """What an ONNX file says of itself under the key `vafer`; empty for others' files.

    Raises ModelError when it is no ONNX file, or when what it says is no JSON object.
    """
    return card_in(read_onnx(path), path)


def card_in(model: "onnx.ModelProto", path: Path) -> dict[str, Any]:
    """The same of a file that was read already."""
    text = next((p.value for p in model.metadata_props if p.key == METADATA_KEY), "{}")
    try:
        card = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its card is not JSON ({error})") from error
    if not isinstance(card, dict):
        raise ModelError(f"{path}: its card is {text[:40]}, expected a JSON object")
    return card


def check_weights(model: "onnx.ModelProto", card: Mapping[str, Any], path: Path) -> None:
    """Raises ModelError where the weights are not those that the card promises, if it does."""
    promised = card.get(WEIGHTS_SHA256)
    if promised and (found := weights_sha256_in(model, path)) != promised:
        raise ModelError(
            f"{path} is damaged, or was changed: its weights have SHA-256 {found}, expected "
            f"{promised}. Get it anew; if it came with vafer, install that anew"
        )


def onnx_weights_sha256(path: Path) -> str:
    """SHA-256 of an ONNX file's weights: of each one's name, type, shape and bytes, by name.

    Weights are the graph's initialisers. A card written into the file leaves it as it is. Raises
    ModelError.
    """
    return weights_sha256_in(read_onnx(path), path)


def weights_sha256_in(model: "onnx.ModelProto", path: Path) -> str:
    """The same of a file that was read already."""
    from onnx import numpy_helper

    digest = hashlib.sha256()
    for weight in sorted(model.graph.initializer, key=lambda weight: weight.name):
        try:
            values = numpy_helper.to_array(weight)
        except Exception as error:  # NumPy's and onnx's own, among others
            raise ModelError(
                f"{path}: its weights {weight.name} cannot be read: {error}"
            ) from error
        digest.update(f"{weight.name} {values.dtype} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
