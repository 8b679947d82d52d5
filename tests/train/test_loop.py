"""The loop: learns, repeats, resumes to the bit, skips without both groups, stops at a bad loss."""

import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.toys import moved, parameters_of, toy_config, toy_feed, toy_players
from train.checkpoint import Progress, load_checkpoint, save_checkpoint
from train.config import (
    DataConfig,
    GameConfig,
    GroupingConfig,
    MarginConfig,
    ModelConfig,
    OptimiserConfig,
)
from train.loop import (
    DivergedError,
    Step,
    encode,
    learning_rate,
    plan_batches,
    predict,
    raise_unless_finite,
    training_steps,
)
from vafer.errors import UsageError


def run(config, n_faces: int = 64, seed: int = 0) -> tuple[list[Step], object, Progress]:
    players, progress = toy_players(config, seed), Progress()
    feed, labels = toy_feed(n_faces)
    return list(training_steps(players, feed, labels, config, seed, progress)), players, progress


def test_training_learns() -> None:
    config = toy_config(
        iterations=150, model=ModelConfig(dropout=0.0), game=GameConfig(adv_weight=0.1)
    )
    feed, labels = toy_feed()
    _, players, progress = run(config)
    predicted = predict(players, feed, config)
    assert np.corrcoef(predicted[:, 0], labels[:, 0])[0, 1] > 0.8
    assert encode(players, feed, np.array([3, 5]), config).shape == (2, 256)
    assert progress.iteration == progress.critic_steps + progress.skipped_steps == 150
    assert progress.critic_steps > 140


@pytest.mark.parametrize("backbone", ["alexnet", "resnet18"])
@pytest.mark.parametrize("critic", ["none", "caf", "fisher", "sphere", "gram"])
def test_resumed_equals_uninterrupted_to_the_bit(
    critic: str, backbone: str, tmp_path: Path
) -> None:
    config = toy_config(
        critic=critic,
        iterations=7,
        model=ModelConfig(backbone=backbone),
        margin=MarginConfig(pairing="random"),
        data=DataConfig(dataset="synthetic", border=4, augment="strong"),
        optimiser=OptimiserConfig(lr=1e-3, schedule="cosine", warmup=3),
    )
    whole, expected, _ = run(config)

    feed, labels = toy_feed()
    first, progress = toy_players(config), Progress()
    steps = training_steps(first, feed, labels, config, 0, progress)
    for _ in range(3):
        next(steps)
    save_checkpoint(tmp_path / "last.pt", first, progress)
    torch.rand(5)  # whatever else draws meanwhile changes nothing

    second = toy_players(config, seed=9)  # other weights, which the checkpoint replaces
    progress = load_checkpoint(tmp_path / "last.pt", second, seed=0)
    assert progress.iteration == 3
    rest = list(training_steps(second, feed, labels, config, 0, progress))
    assert [s.number for s in rest] == [4, 5, 6, 7]
    for a, b in zip(whole[3:], rest, strict=True):
        assert a.losses.keys() == b.losses.keys()
        assert all(torch.equal(a.losses[name], b.losses[name]) for name in a.losses)
    assert state(expected).keys() == state(second).keys()
    assert all(torch.equal(value, state(second)[name]) for name, value in state(expected).items())


def state(players) -> dict[str, torch.Tensor]:
    found = dict(players.net.state_dict())
    if players.critic is not None:
        found |= {f"critic.{name}": value for name, value in players.critic.state_dict().items()}
    return found


def test_equal_seeds_repeat_and_others_do_not() -> None:
    config = toy_config(iterations=2)
    _, first, _ = run(config)
    _, again, _ = run(config)
    _, other, _ = run(config, seed=1)
    assert not moved(parameters_of(first), parameters_of(again))
    assert moved(parameters_of(first), parameters_of(other))


def test_every_face_is_taken_once_an_epoch_and_the_weak_come_first() -> None:
    rng = np.random.default_rng(0)
    labels = rng.uniform(-1, 1, (40, 2)).astype(np.float32)
    config = toy_config(iterations=10, batch_size=8)
    plans = list(plan_batches(labels, config, 0, 0, has_critic=True))
    assert [p.epoch for p in plans] == [0] * 5 + [1] * 5
    for epoch in (0, 1):
        taken = np.concatenate([p.indices for p in plans if p.epoch == epoch])
        assert sorted(taken) == list(range(40))
    for plan in plans:
        radii = np.hypot(*labels[plan.indices].astype(float).T)
        assert (radii[: plan.groups.n_weak] < plan.groups.radius).all()
        assert (radii[plan.groups.n_weak :] >= plan.groups.radius).all()
    later = list(plan_batches(labels, config, 0, 7, has_critic=True))
    assert all((a.indices == b.indices).all() for a, b in zip(plans[7:], later, strict=True))


def test_one_threshold_for_the_whole_set_where_asked() -> None:
    labels = np.random.default_rng(0).uniform(-1, 1, (64, 2)).astype(np.float32)
    config = toy_config(grouping=GroupingConfig(scope="dataset"))
    assert len({p.groups.radius for p in plan_batches(labels, config, 0, 0, has_critic=True)}) == 1
    config = toy_config(grouping=GroupingConfig(scope="batch"))
    assert len({p.groups.radius for p in plan_batches(labels, config, 0, 0, has_critic=True)}) == 6


def test_a_batch_without_both_groups_skips_the_critic_and_counts() -> None:
    config = toy_config()
    feed, labels = toy_feed()
    flat = np.full_like(labels, 0.4)
    players, progress = toy_players(config), Progress()
    before = parameters_of(players)
    steps = list(training_steps(players, feed, flat, config, 0, progress))
    assert (progress.critic_steps, progress.skipped_steps) == (0, 6)
    assert all(set(s.losses) == {"loss_av"} for s in steps)
    assert not any(name.startswith("critic.") for name in moved(before, parameters_of(players)))


def test_a_loss_that_is_not_finite_stops_at_its_iteration() -> None:
    config = toy_config()
    feed, labels = toy_feed()
    bad = labels.copy()
    third = list(plan_batches(labels, config, 0, 0, has_critic=True))[2].indices[0]
    bad[third] = np.nan
    players = toy_players(config)
    with pytest.raises(DivergedError, match="iteration 3: loss_av is nan") as error:
        list(training_steps(players, feed, bad, config, 0, Progress()))
    assert (error.value.step, error.value.loss) == (3, "loss_av")


def test_fewer_faces_than_a_batch_are_refused() -> None:
    with pytest.raises(UsageError, match="8 faces to train on: expected at least a batch of 16"):
        run(toy_config(), n_faces=8)


def test_rates() -> None:
    step = OptimiserConfig(lr=1.0, decay=0.8, decay_every=10)
    assert [learning_rate(step, i, 100) for i in (0, 9, 10, 25)] == pytest.approx([1, 1, 0.8, 0.64])
    cosine = OptimiserConfig(lr=1.0, schedule="cosine", warmup=4)
    rates = [learning_rate(cosine, i, 104) for i in (0, 3, 4, 54, 104)]
    assert rates == pytest.approx([0.25, 1, 1, 0.5, 0], abs=1e-9)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    config = toy_config()
    save_checkpoint(tmp_path / "last.pt", toy_players(config), Progress(0, 3))
    other = replace(config, model=ModelConfig(backbone="resnet18"))
    with pytest.raises(UsageError, match=r"last\.pt cannot be resumed from"):
        load_checkpoint(tmp_path / "last.pt", toy_players(other), seed=0)
    with pytest.raises(UsageError, match=r"it is of seed 0, not of 1"):
        load_checkpoint(tmp_path / "last.pt", toy_players(config), seed=1)
    whole = (tmp_path / "last.pt").read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes(255 - b for b in whole[middle : middle + 9])
    flipped += whole[len(flipped) :]
    for damaged in (b"damaged", b"", whole[:middle], whole[:-9], flipped):
        (tmp_path / "last.pt").write_bytes(damaged)
        with pytest.raises(UsageError, match=r"last\.pt is damaged: start anew"):
            load_checkpoint(tmp_path / "last.pt", toy_players(config), seed=0)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_the_adversarial_rate_is_scaled() -> None:
    _, players, _ = run(toy_config(iterations=6, game=GameConfig(adv_weight=0.1)))
    rates = {name: o.param_groups[0]["lr"] for name, o in players.optimisers.items()}
    assert rates["adversarial"] == pytest.approx(0.1 * rates["regression"])
    assert rates["critic"] == rates["regression"]


def test_the_encoder_is_decayed_once() -> None:
    config = toy_config()
    config = replace(config, optimiser=replace(config.optimiser, weight_decay=0.02))
    optimisers = toy_players(config).optimisers
    decay = {name: o.param_groups[0]["weight_decay"] for name, o in optimisers.items()}
    assert decay == {"regression": 0.02, "critic": 0.02, "adversarial": 0.0}


def test_what_diverged_in_another_process_is_told() -> None:
    error = DivergedError(7, "loss_av", math.inf).after(Path("last.pt"), Path("log.jsonl"))
    found = pickle.loads(pickle.dumps(error))
    assert str(found) == str(error)
    assert (found.step, found.loss, found.value) == (7, "loss_av", math.inf)


def test_parameters_that_are_not_finite_are_caught() -> None:
    players = toy_players(toy_config())
    raise_unless_finite(players, 4)
    next(iter(players.net.parameters())).data[0] = torch.nan
    with pytest.raises(DivergedError, match="iteration 4: the norm of the parameters is nan"):
        raise_unless_finite(players, 4)


def test_losses_are_looked_at_when_they_are_logged_scored_or_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, where looking means waiting: the feed says that it is on one."""
    config = toy_config(log_every=4, evaluate_every=100, checkpoint_every=100)
    feed, labels = toy_feed()
    looked = []
    monkeypatch.setattr("train.loop._raise_if_bad", lambda steps: looked.append(len(steps)))
    monkeypatch.setattr("train.loop.is_cpu", lambda device: False)
    list(training_steps(toy_players(config), feed, labels, config, 0, Progress()))
    assert looked == [4, 2]


def test_evaluation_between_steps_changes_nothing() -> None:
    config = toy_config()
    plain, _, _ = run(config)
    players, (feed, labels) = toy_players(config), toy_feed()
    seen = []
    for step in training_steps(players, feed, labels, config, 0, Progress()):
        seen.append(step.losses)
        predict(players, feed, config)
        players.critic.eval()
    assert [{k: v.item() for k, v in s.items()} for s in seen] == [
        {k: v.item() for k, v in s.losses.items()} for s in plain
    ]


@pytest.mark.parametrize("backbone", ["alexnet", "resnet18"])
def test_imagenet_weights_go_into_the_encoder(backbone: str, tmp_path: Path) -> None:
    from torchvision import models

    from train.pretrained import load_encoder
    from vafer.errors import ModelError

    torch.manual_seed(3)
    theirs = getattr(models, backbone)(weights=None)
    state = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}  # as of old
    torch.save(state, tmp_path / "imagenet.pth")
    net = toy_players(toy_config(model=ModelConfig(backbone=backbone))).net.eval()
    load_encoder(net, tmp_path / "imagenet.pth")
    x = torch.rand(2, 3, 64, 64)
    theirs.eval()
    if backbone == "alexnet":
        expected = theirs.features(x).flatten(1)
    else:
        theirs.fc = torch.nn.Identity()
        expected = theirs(x)
    torch.testing.assert_close(net.encoder(x), expected)
    del state[next(iter(state))]
    torch.save(state, tmp_path / "imagenet.pth")
    with pytest.raises(ModelError, match=r"imagenet\.pth lacks"):
        load_encoder(net, tmp_path / "imagenet.pth")
    with pytest.raises(ModelError, match=r"no such file, named by model\.pretrained"):
        load_encoder(net, tmp_path / "none.pth")
