"""One update per player of the game, one function each (Algorithm 1, lines 5 to 8).

The critic learns to tell the strong from the weak; the encoder moves so that the weak look strong
to it; then encoder and regressor move down L_AV. Batches come with the weak in front, so that the
encoder's first pass keeps a graph for them alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from train.critics import Critic, Objective
from train.losses import av_loss
from train.parallel import Team, has_batch_norm, still_batch_norm
from vafer.model import AVNet


@dataclass(frozen=True, slots=True)
class Batch:
    """One iteration's faces; the weak come first, in the global batch and so in each process's own.

    images: own normalised crops (n, 3, S, S). labels: of the global batch (N, 2), valence and
    arousal; losses are computed in their precision. posteriors: of the global batch (N, K), where
    expressions are read too. n_weak: of the global batch; 0 where the
    critic does not play. epoch: passes finished. generator: for what the critic's objective draws.
    """

    images: torch.Tensor
    labels: torch.Tensor
    n_weak: int
    epoch: int
    generator: torch.Generator
    posteriors: torch.Tensor | None = None


@dataclass(slots=True)
class Players:
    """Who moves, and by what. critic and objective are None where there is no adversary.

    reader: features → logits of the expressions, None where they are not read; the regression step
    moves it, and weighs its loss with expression_weight.
    bf16: the encoder computes in bfloat16. Regressor, critic and losses never do: the handful of
    values that bfloat16 has near 0 would be all that a regressor could say at first.
    """

    net: AVNet
    critic: Critic | None
    objective: Objective | None
    optimisers: dict[str, torch.optim.Optimizer]
    team: Team
    bf16: bool
    reader: nn.Linear | None = None
    expression_weight: float = 0.0

    def autocast(self) -> torch.autocast:
        device = next(self.net.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.bf16)


def iterate(players: Players, batch: Batch) -> dict[str, torch.Tensor]:
    """One iteration, critic and adversarial step included where the batch has both groups.

    Returns detached scalars: `loss_av`, `loss_expressions` where they are read, and where the
    critic played `loss_critic`, `loss_adv` and the terms of its objective. Nothing here waits for
    the device.
    """
    found: dict[str, torch.Tensor] = {}
    if players.critic is not None and batch.n_weak:
        features = critic_features(players, batch)
        found["loss_critic"] = critic_step(players, batch, features)
        found["loss_adv"] = adversarial_step(players, batch, features)
        assert players.objective is not None
        found |= players.objective.terms
    return found | regression_step(players, batch)


def critic_features(players: Players, batch: Batch) -> torch.Tensor:
    """h of the own rows (n, n_features), shared by the critic's and the adversarial step.

    The graph reaches the encoder through the weak alone, unless the objective moves the strong too,
    or batch normalisation ties the rows together. Running statistics stay as they are.
    """
    assert players.objective is not None
    encoder = players.net.encoder
    n_weak = players.team.n_own(batch.n_weak)
    with players.autocast(), still_batch_norm(encoder):
        if players.objective.moves_strong or has_batch_norm(encoder):
            return encoder(batch.images).to(batch.labels)
        with torch.no_grad():
            strong = encoder(batch.images[n_weak:])
        return torch.cat([encoder(batch.images[:n_weak]), strong]).to(batch.labels)


def critic_step(players: Players, batch: Batch, features: torch.Tensor) -> torch.Tensor:
    """Move the critic down L_c, Eq. (6); the encoder stands still."""
    assert players.critic is not None
    assert players.objective is not None
    weak, strong = _latent(players, batch, features.detach())
    loss = players.objective.critic_loss(strong, weak, epoch=batch.epoch, generator=batch.generator)
    _descend(players, "critic", loss, players.critic.parameters())
    return loss.detach()


def adversarial_step(players: Players, batch: Batch, features: torch.Tensor) -> torch.Tensor:
    """Move the encoder down L_adv (Algorithm 1, line 7); the critic stands still."""
    assert players.objective is not None
    weak, strong = _latent(players, batch, features)
    loss = players.objective.adversarial_loss(strong, weak)
    _descend(players, "adversarial", loss, players.net.encoder.parameters())
    return loss.detach()


def regression_step(players: Players, batch: Batch) -> dict[str, torch.Tensor]:
    """Move encoder and regressor down L_AV (Algorithm 1, line 8), and down the reader's loss."""
    with players.autocast():
        features = players.net.encoder(batch.images)
    features = features.to(batch.labels)
    av = av_loss(players.team.gather(players.net.regressor(features)), batch.labels)
    loss, moved = av, [*players.net.parameters()]
    losses = {"loss_av": av.detach()}
    if players.reader is not None and batch.posteriors is not None:
        logits = players.team.gather(players.reader(features))
        expressions = F.cross_entropy(logits, batch.posteriors)
        losses["loss_expressions"] = expressions.detach()
        loss = av + players.expression_weight * expressions
        moved += players.reader.parameters()
    _descend(players, "regression", loss, moved)
    return losses


def _latent(
    players: Players, batch: Batch, features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """z of the global batch: weak (N_w, d), strong (N_s, d)."""
    assert players.critic is not None
    z = players.team.gather(players.critic(features))
    return z[: batch.n_weak], z[batch.n_weak :]


def _descend(
    players: Players, name: str, loss: torch.Tensor, parameters: Iterable[nn.Parameter]
) -> None:
    """One step of the optimiser `name`, for these parameters alone."""
    moved = list(parameters)
    gradients = torch.autograd.grad(loss, moved, allow_unused=players.team.size > 1)
    summed = [
        torch.zeros_like(p) if g is None else g for p, g in zip(moved, gradients, strict=True)
    ]
    players.team.add_up(summed)
    for parameter, gradient in zip(moved, summed, strict=True):
        parameter.grad = gradient
    players.optimisers[name].step()
    for parameter in moved:
        parameter.grad = None
