"""Randomness as a function of seed, purpose and iteration, so that a resumed run draws the same.

No generator's state has to be kept: each iteration starts its own. Draws are made for the global
batch and each process takes its rows, so that N processes draw what one would; dropout alone has a
stream for each process.
"""

from enum import IntEnum

import numpy as np
import torch

from train.parallel import Team


class Purpose(IntEnum):
    """What is drawn for; each has a stream of its own."""

    WEIGHTS = 0
    ORDER = 1
    AUGMENTATION = 2
    DROPOUT = 3
    PAIRING = 4


def seed_of(seed: int, purpose: Purpose, *at: int) -> int:
    """A seed for one stream at one point of it (an iteration, an epoch, a rank)."""
    return int(np.random.SeedSequence([seed, purpose, *at]).generate_state(1, np.uint64)[0] >> 1)


def generator_of(
    seed: int, purpose: Purpose, *at: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    generator = torch.Generator(device)
    generator.manual_seed(seed_of(seed, purpose, *at))
    return generator


class BatchDraws:
    """Random numbers for the own rows of a global batch of n.

    generator: of the device where the numbers are wanted; the same on every process.
    """

    def __init__(self, generator: torch.Generator, n: int, team: Team) -> None:
        self.generator, self.n, self.team = generator, n, team
        self.on_cpu = np.random.default_rng(generator.initial_seed())

    def uniform(self, low: float, high: float) -> torch.Tensor:
        """One number a row: (own rows,)."""
        drawn = torch.rand(self.n, generator=self.generator, device=self.generator.device)
        return drawn[self.team.rows] * (high - low) + low

    def integers(self, high: int) -> torch.Tensor:
        """One of 0 … high − 1 a row: int64 (own rows,)."""
        drawn = torch.randint(
            high, (self.n,), generator=self.generator, device=self.generator.device
        )
        return drawn[self.team.rows]

    def normal(self, *shape: int) -> torch.Tensor:
        """(own rows, *shape), of mean 0 and standard deviation 1."""
        drawn = torch.randn(self.n, *shape, generator=self.generator, device=self.generator.device)
        return drawn[self.team.rows]

    def common(self, low: float, high: float) -> float:
        """One number for the whole batch; drawn on the CPU, where nothing waits for it."""
        return float(self.on_cpu.uniform(low, high))
