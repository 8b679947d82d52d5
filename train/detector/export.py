"""The network → an ONNX file that insightface loads as SCRFD."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train.detector.network import STRIDES, SCRFDLayout
from vafer.faces import SECOND_LOOK
from vafer.files import write_whole
from vafer.onnx_file import METADATA_KEY, WEIGHTS_SHA256, weights_sha256_in

OPSET = 13


def export(net: nn.Module, path: Path, card: dict[str, Any], shift: float) -> None:
    """Write a trained `FaceNet` with its card, which asks for a second look; input of any size.

    shift: of its logits, downwards.
    """
    import onnx

    outputs = [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in STRIDES]
    layout = SCRFDLayout(net.cpu(), shift).eval()  # type: ignore[arg-type]

    def write(temporary: Path) -> None:
        with warnings.catch_warnings():
            # The older exporter: the newer one needs another package, and gives the same graph.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                layout,
                (torch.zeros(1, 3, 320, 320),),
                str(temporary),
                input_names=["input"],
                output_names=outputs,
                dynamic_axes={"input": {2: "height", 3: "width"}}
                | {name: {0: "anchors"} for name in outputs},
                opset_version=OPSET,
                dynamo=False,
            )
        model = onnx.load_model(str(temporary))
        written = {SECOND_LOOK: True, WEIGHTS_SHA256: weights_sha256_in(model, path), **card}
        onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(written, sort_keys=True)})
        onnx.save_model(model, str(temporary))

    write_whole(path, write)
