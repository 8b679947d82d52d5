"""Two processes over gloo equal one on the same global batch: losses, parameters, statistics.

In double precision, and with gradient descent, whose steps are as equal as the gradients: Adam's
first steps go by the sign of each, and so blow up rounding errors around 0.
"""

import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from tests.train.toys import CPU, toy_config, toy_feed
from train import loop
from train.checkpoint import Progress
from train.config import DataConfig, MarginConfig, ModelConfig, TrainConfig
from train.loop import make_players, network_input, predict, training_steps
from train.parallel import GlobalBatchNorm2d, Team, join_team, synchronise_batch_norm
from vafer.errors import UsageError


def run(config: TrainConfig, team: Team) -> dict[str, object]:
    feed, labels = toy_feed(32)
    players = make_players(config, 0, CPU, team)
    if players.critic is not None:  # dropout differs by process, as it should
        for module in players.critic.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    players.net.double()
    if players.critic is not None:
        players.critic.double()
    players.optimisers = {
        name: torch.optim.SGD(optimiser.param_groups[0]["params"], lr=0.0)
        for name, optimiser in players.optimisers.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "network_input", lambda *args: network_input(*args).double())
        labels = labels.astype(np.float64)
        steps = list(training_steps(players, feed, labels, config, 0, Progress()))
        predicted = predict(players, feed, config)
    state = dict(players.net.state_dict())
    if players.critic is not None:
        state |= {f"critic.{k}": v for k, v in players.critic.state_dict().items()}
    return {
        "losses": [{k: v.item() for k, v in s.losses.items()} for s in steps],
        "state": state,
        "predicted": predicted,
    }


def worker(rank: int, port: int, config: TrainConfig, out: Path) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    with join_team("cpu") as (team, _):
        assert (team.rank, team.size) == (rank, 2)
        assert team.any(rank == 1)
        assert not team.any(False)
        torch.save(run(config, team), out / f"{rank}.pt")


def loner(rank: int, port: int, out: Path) -> None:
    """One face for two processes; and an error that the leader alone meets."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip

    def fails() -> None:
        raise UsageError("only the leader looked")

    config = toy_config()
    with join_team("cpu") as (team, _):
        feed, _ = toy_feed(1)
        predicted = predict(make_players(config, 0, CPU, team), feed, config)
        with pytest.raises(UsageError, match="only the leader looked"):
            team.led(fails)
        assert team.led(lambda: 7) == (7 if team.leads else None)
        assert team.agrees((1, "a"))
        assert not team.agrees(rank)
        torch.save(predicted.shape, out / f"{rank}.pt")


def test_a_share_may_be_empty_and_an_error_is_everyones(tmp_path: Path) -> None:
    mp.spawn(loner, (free_port(), tmp_path), nprocs=2)
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)] == [(1, 2)] * 2


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("backbone", ["alexnet", "resnet18"])
@pytest.mark.parametrize("critic", ["caf", "gram"])
def test_two_processes_equal_one(critic: str, backbone: str, tmp_path: Path) -> None:
    config = toy_config(
        critic=critic,
        iterations=3,
        batch_size=16,
        model=ModelConfig(backbone=backbone, dropout=0.0),
        margin=MarginConfig(pairing="random" if backbone == "resnet18" else "nearest"),
        data=DataConfig(dataset="synthetic", border=4, augment="strong"),
    )
    config = replace(config, optimiser=replace(config.optimiser, lr=0.01, warmup=0))
    one = run(config, Team())
    mp.spawn(worker, (free_port(), config, tmp_path), nprocs=2)
    two = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for found in two:
        for a, b in zip(one["losses"], found["losses"], strict=True):
            assert a == pytest.approx(b, rel=1e-7, abs=1e-7)
        assert one["state"].keys() == found["state"].keys()
        for name, value in one["state"].items():
            torch.testing.assert_close(value, found["state"][name], rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(one["predicted"], found["predicted"], atol=1e-6)


def test_global_batch_norm_on_its_own_is_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.parallel.dist.all_reduce", lambda total: None)  # a sum over one
    monkeypatch.setattr("train.parallel.dist.get_world_size", lambda: 1)
    torch.manual_seed(0)
    x = torch.randn(6, 4, 5, 5, requires_grad=True)
    plain, ours = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    holder = nn.Sequential(ours)
    synchronise_batch_norm(holder)
    assert type(holder[0]) is GlobalBatchNorm2d
    torch.testing.assert_close(holder(x), plain(x))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, holder[0].state_dict()[name])
    weights = torch.randn_like(x)
    expected = torch.autograd.grad((plain(x) * weights).sum(), x)
    torch.testing.assert_close(torch.autograd.grad((holder(x) * weights).sum(), x), expected)
    torch.testing.assert_close(holder.eval()(x), plain.eval()(x))


def test_devices_are_checked() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="GPU 3 is wanted, 0 found"), join_team("cuda:3"):
            pass
    with join_team("cpu") as (team, device):
        assert (team, device) == (Team(), CPU)
