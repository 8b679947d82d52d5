"""What the tests of training share: faces that any network can learn, and small configs."""

from dataclasses import replace

import numpy as np
import torch

from train.config import DataConfig, OptimiserConfig, TrainConfig
from train.data import FaceSet, Split
from train.feed import Feed
from train.loop import make_players
from train.parallel import Team
from train.steps import Players
from vafer.crops import CropSpec

CPU = torch.device("cpu")


def toy_config(**changes: object) -> TrainConfig:
    """A few small steps with a critic, without augmentation."""
    config = TrainConfig(
        data=DataConfig(dataset="synthetic", border=4, augment="none"),
        crop=CropSpec(size=64, grey=True),
        optimiser=OptimiserConfig(lr=1e-3, warmup=5),
        iterations=6,
        batch_size=16,
        device="cpu",
        log_every=2,
        evaluate_every=3,
        checkpoint_every=3,
    )
    return replace(config, **changes)


def toy_faces(n: int = 64, *, name: str = "toy", seed: int = 0) -> FaceSet:
    """Grey crops whose brightness is the valence and whose slope is the arousal; 8 subjects."""
    rng = np.random.default_rng(seed)
    labels = rng.uniform(-0.7, 0.7, (n, 2)).astype(np.float32)
    slope = np.linspace(-1, 1, 72)
    crops = 128 + 90 * labels[:, :1, None] + 60 * labels[:, 1:, None] * slope
    crops = crops + rng.normal(0, 4, (n, 72, 72))
    return FaceSet(
        name,
        crops.clip(0, 255).astype(np.uint8)[:, None],
        np.arange(n),
        labels,
        np.array([f"{name}-{i % 8}" for i in range(n)], object),
        np.full(n, None, object),
    )


def toy_split() -> Split:
    held_out = toy_faces(32, name="held_out", seed=1)
    return Split((toy_faces(),), (held_out,), {"labels": "drawn"})


def toy_players(config: TrainConfig, seed: int = 0, team: Team | None = None) -> Players:
    return make_players(config, seed, CPU, team or Team())


def toy_feed(n: int = 64) -> tuple[Feed, np.ndarray]:
    faces = toy_faces(n)
    return Feed([faces], CPU), faces.labels


def parameters_of(players: Players) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers, by player and name."""
    assert players.critic is not None
    modules = {
        "encoder": players.net.encoder,
        "regressor": players.net.regressor,
        "critic": players.critic,
    }
    return {
        f"{player}.{name}": value.detach().clone()
        for player, module in modules.items()
        for name, value in module.state_dict().items()
    }


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}
