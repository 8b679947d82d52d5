"""ImageNet weights for the encoder, from a state dict of torchvision's on disk."""

from pathlib import Path
from pickle import UnpicklingError

import torch

from vafer.errors import ModelError
from vafer.model import AVNet


def load_encoder(net: AVNet, path: Path) -> None:
    """Put the convolutional part of torchvision's AlexNet or ResNet18 into net.encoder, in place.

    path: a `.pth` state dict, such as torchvision's own download; nothing but tensors is unpickled.
    Raises ModelError where a key of the encoder is missing or of another shape.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        # AVNet's AlexNet holds `features` as the first of a sequence.
        renamed = {k.replace("features.", "0.", 1): v for k, v in state.items()}
        wanted = net.encoder.state_dict()
        for name, value in wanted.items():  # older files do not count batches
            if name.endswith("num_batches_tracked"):
                renamed.setdefault(name, value)
        missing = [name for name in wanted if name not in renamed]
        if missing:
            raise ModelError(
                f"{path} lacks {missing[0]} and {len(missing) - 1} more of the encoder's weights: "
                "expected a state dict of torchvision's network of the same name"
            )
        net.encoder.load_state_dict({name: renamed[name] for name in wanted})
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file, named by model.pretrained") from error
    except (OSError, EOFError, UnpicklingError, RuntimeError, AttributeError, ValueError) as error:
        raise ModelError(f"{path} cannot be used as weights of the encoder: {error}") from error
