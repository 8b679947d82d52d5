"""Each step moves its own player and no other; batch-norm statistics move once an iteration."""

from dataclasses import replace

import pytest
import torch

from tests.train.toys import moved, parameters_of, toy_config, toy_faces, toy_players
from train.config import DataConfig, ModelConfig
from train.critics import Caf
from train.groups import group, threshold_radius
from train.loop import network_input
from train.parallel import Team, still_batch_norm
from train.steps import (
    Batch,
    Players,
    adversarial_step,
    critic_features,
    critic_step,
    iterate,
    regression_step,
)

KINDS = ["caf", "fisher", "sphere", "gram"]


def toy_batch(n: int = 16) -> Batch:
    faces = toy_faces(n)
    config = toy_config()
    groups = group(faces.labels, threshold_radius(faces.labels, config.grouping))
    order = [*groups.weak, *groups.strong]
    crops = torch.from_numpy(faces.crops[order])[..., 4:-4, 4:-4]
    return Batch(
        images=network_input(crops, config),
        labels=torch.from_numpy(faces.labels[order]),
        n_weak=groups.n_weak,
        epoch=0,
        generator=torch.Generator().manual_seed(0),
    )


def players_of(kind: str, backbone: str = "alexnet") -> Players:
    return toy_players(toy_config(critic=kind, model=ModelConfig(backbone=backbone)))


def of(player: str, names: set[str]) -> bool:
    return bool(names) and all(name.startswith(f"{player}.") for name in names)


@pytest.mark.parametrize("backbone", ["alexnet", "resnet18"])
@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_right_parameters_move(kind: str, backbone: str) -> None:
    players, batch = players_of(kind, backbone), toy_batch()
    players.net.train()
    start = parameters_of(players)
    features = critic_features(players, batch)
    assert not moved(start, parameters_of(players))

    critic_step(players, batch, features)
    after_critic = parameters_of(players)
    expected = {name for name in start if name.startswith("critic.")}
    assert moved(start, after_critic) == expected

    adversarial_step(players, batch, features)
    after_adversarial = parameters_of(players)
    assert of("encoder", moved(after_critic, after_adversarial))
    convolutions = {name for name, _ in players.net.encoder.named_parameters()}
    assert moved(after_critic, after_adversarial) == {f"encoder.{name}" for name in convolutions}

    regression_step(players, batch)
    names = moved(after_adversarial, parameters_of(players))
    assert not any(name.startswith("critic.") for name in names)
    assert {name.split(".")[0] for name in names} == {"encoder", "regressor"}
    assert all(p.grad is None for p in players.net.parameters())


def test_reading_expressions_moves_the_reader_and_the_encoder_alone() -> None:
    config = toy_config(
        critic="none",
        expression_weight=1.0,
        data=DataConfig(dataset="faces", labels="graded", border=4),
    )
    players, plain = toy_players(config), toy_players(replace(config, expression_weight=0.0))
    assert plain.reader is None
    assert players.reader is not None
    batch = toy_batch()
    shares = torch.eye(7)[torch.arange(16) % 7]
    before = players.reader.weight.detach().clone()
    losses = []
    for one in (players, plain):
        one.net.eval()  # without dropout, so that both see the same
        losses.append(regression_step(one, replace(batch, posteriors=shares))["loss_av"])
    assert losses[0] == losses[1]  # what is logged is L_AV
    assert not torch.equal(players.reader.weight, before)
    both = [dict(one.net.named_parameters()) for one in (players, plain)]
    for name, value in both[0].items():
        is_same = torch.equal(value, both[1][name])
        assert is_same == name.startswith("regressor"), name


def test_batch_norm_statistics_move_once_an_iteration() -> None:
    players, batch = players_of("caf", "resnet18"), toy_batch()
    players.net.train()
    norms = [m for m in players.net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for number in (1, 2):
        iterate(players, batch)
        assert {int(m.num_batches_tracked) for m in norms} == {number}
    before = [m.running_mean.clone() for m in norms]
    features = critic_features(players, batch)
    critic_step(players, batch, features)
    adversarial_step(players, batch, features)
    assert all(torch.equal(a, m.running_mean) for a, m in zip(before, norms, strict=True))
    with still_batch_norm(players.net):
        pass
    assert all(m.track_running_stats for m in norms)


def test_the_shared_pass_gives_what_a_whole_one_does() -> None:
    """Values are those of one pass; the graph is there for the weak alone."""
    players, batch = players_of("caf"), toy_batch()
    features = critic_features(players, batch)
    torch.testing.assert_close(features, players.net.encoder(batch.images))
    parameter = next(players.net.encoder.parameters())
    weak, strong = features[: batch.n_weak], features[batch.n_weak :]
    (gradient,) = torch.autograd.grad(weak.sum(), parameter, retain_graph=True)
    assert gradient.abs().sum() > 0
    (gradient,) = torch.autograd.grad(strong.sum(), parameter)
    assert gradient.abs().sum() == 0
    assert players_of("gram").objective.moves_strong


def test_the_adversarial_gradient_is_that_of_the_loss() -> None:
    """Splitting the pass changes nothing: the gradient is that of L_adv through a whole pass."""
    players, batch = players_of("caf"), toy_batch()
    players.critic.eval()
    parameters = list(players.net.encoder.parameters())

    def gradients(features: torch.Tensor) -> list[torch.Tensor]:
        z = players.critic(features)
        loss = Caf.adversarial_loss(players.objective, z[batch.n_weak :], z[: batch.n_weak])
        return list(torch.autograd.grad(loss, parameters))

    whole = gradients(players.net.encoder(batch.images))
    for a, b in zip(whole, gradients(critic_features(players, batch)), strict=True):
        torch.testing.assert_close(a, b)


def test_the_encoder_makes_the_weak_look_strong() -> None:
    """With the critic still, repeated adversarial steps raise its mean over the weak."""
    players, batch = players_of("caf"), toy_batch()
    players.critic.eval()
    players.net.eval()
    losses = [
        adversarial_step(players, batch, critic_features(players, batch)).item() for _ in range(10)
    ]
    assert losses[-1] < losses[0]


def test_without_groups_only_the_regression_moves() -> None:
    players = players_of("caf")
    batch = toy_batch()
    start = parameters_of(players)
    losses = iterate(players, Batch(batch.images, batch.labels, 0, 0, batch.generator))
    assert set(losses) == {"loss_av"}
    assert not any(name.startswith("critic.") for name in moved(start, parameters_of(players)))


def test_losses_are_float32_and_detached_in_bfloat16_too() -> None:
    config = toy_config(precision="bfloat16")
    players = toy_players(config)
    losses = iterate(players, toy_batch())
    assert set(losses) == {"loss_critic", "loss_adv", "loss_av", "margin_mi", "margin_delta"}
    assert all(v.dtype == torch.float32 and not v.requires_grad for v in losses.values())
    assert all(p.dtype == torch.float32 for p in players.net.parameters())


def test_regression_moves_down_the_loss() -> None:
    players, batch = players_of("none"), toy_batch()
    assert players.critic is None
    players.net.eval()
    losses = [regression_step(players, batch)["loss_av"].item() for _ in range(8)]
    assert losses[-1] < losses[0]


def test_a_team_of_one_is_no_team() -> None:
    z = torch.rand(4, 2, requires_grad=True)
    assert Team().gather(z) is z
    assert Team().n_own(7) == 7
    assert Team(1, 3).n_own(7) == 2
