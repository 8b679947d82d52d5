"""One update per player of the game, one function each. So far there is one: the regression step.

The critic and the adversarial step take their places before it; they share its batch.
"""

from dataclasses import dataclass

import torch

from train.losses import av_loss
from vafer.model import AVNet


@dataclass(frozen=True, slots=True)
class Batch:
    """images: normalised crops (N, 3, S, S). labels: (N, 2), valence and arousal."""

    images: torch.Tensor
    labels: torch.Tensor


def regression_step(
    net: AVNet, optimiser: torch.optim.Optimizer, batch: Batch, *, bf16: bool
) -> torch.Tensor:
    """Move encoder and regressor down L_AV (Algorithm 1, line 8); returns the detached loss.

    With bf16 the network computes in bfloat16; the loss is in float32 either way.
    """
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bf16):
        predicted = net(batch.images)
    loss = av_loss(predicted.float(), batch.labels)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # untyped in PyTorch
    optimiser.step()
    return loss.detach()
