"""Reading ONNX files, and telling what is in them."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from vafer.errors import ModelError

METADATA_KEY = "vafer"  # of a file's metadata_props: the card of a detector of ours, as JSON

if TYPE_CHECKING:
    import onnx


def read_onnx(path: Path, *, with_weights: bool = True) -> "onnx.ModelProto":
    """What an ONNX file holds; `with_weights`: also those that lie in files beside it.

    Raises ModelError where it is none, or holds no network.
    """
    import onnx

    expected = "Expected a face detector such as insightface's det_10g.onnx or a YuNet export"
    try:
        model = onnx.load_model(str(path), load_external_data=with_weights)
    except Exception as error:  # protobuf's own, among others
        raise ModelError(
            f"{path} cannot be read as an ONNX file: it is damaged, or of another kind, or a part "
            f"that lies beside it is missing ({' '.join(str(error).split())}). {expected}"
        ) from error
    if not model.graph.node:
        found = "is empty" if path.stat().st_size == 0 else "is an ONNX file without a network"
        raise ModelError(f"{path} {found}. {expected}")
    return model


def onnx_weights_sha256(path: Path) -> str:
    """SHA-256 of an ONNX file's weights: of each one's name, type, shape and bytes, by name.

    A card written into the file leaves it as it is. Raises ModelError.
    """
    from onnx import numpy_helper

    digest = hashlib.sha256()
    for weight in sorted(read_onnx(path).graph.initializer, key=lambda weight: weight.name):
        try:
            values = numpy_helper.to_array(weight)
        except Exception as error:  # NumPy's and onnx's own, among others
            raise ModelError(
                f"{path}: its weights {weight.name} cannot be read: {error}"
            ) from error
        digest.update(f"{weight.name} {values.dtype} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
