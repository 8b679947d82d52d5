"""Several processes that train as one: statistics and losses are those of the global batch.

Row p of a global batch belongs to process p % size, so that each has its part of both groups. Every
process computes the loss of the whole batch; the gradient of its own rows is its contribution, and
contributions are added up. DistributedDataParallel averages instead, per forward pass of one loss.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from vafer.errors import UsageError, VaferError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Team:
    """The processes of a run; `Team()` is a process on its own."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and shows."""
        return self.rank == 0

    @property
    def rows(self) -> slice:
        """The rows of a global batch that are this process's own."""
        return slice(self.rank, None, self.size)

    def n_own(self, n: int) -> int:
        """How many of the first n rows of a global batch are this process's own."""
        return len(range(n)[self.rows])

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """Own rows (n, …) → those of the global batch, in its order (n · size, …), differentiable.

        The gradient is that of the own rows: the others' is computed by their processes.
        """
        return own if self.size == 1 else cast(torch.Tensor, _Gather.apply(own, self))

    def add_up(self, gradients: list[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the processes, in place."""
        if self.size == 1 or not gradients:
            return
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        at = 0
        for gradient in gradients:
            gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()

    def gather_arrays(self, own: np.ndarray, n: int) -> np.ndarray:
        """Own rows of an array of n in all → all of it, in its order."""
        if self.size == 1:
            return own
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, own)
        whole = np.empty((n, *own.shape[1:]), own.dtype)
        for rank, part in enumerate(parts):
            whole[rank :: self.size] = part
        return whole

    def any(self, own: bool) -> bool:
        """Whether it is so in any process."""
        if self.size == 1:
            return own
        answers: list[Any] = [None] * self.size
        dist.all_gather_object(answers, own)
        return any(answers)

    def agrees(self, own: object) -> bool:
        """Whether it is the same in all processes."""
        if self.size == 1:
            return True
        answers: list[Any] = [None] * self.size
        dist.all_gather_object(answers, own)
        return all(answer == own for answer in answers)

    def led(self, work: Callable[[], T]) -> T | None:
        """Have the leader do some work while the others wait; it gets the result, they None.

        Where it raises a VaferError or an OSError, all do.
        """
        result: T | None = None
        told: list[VaferError | OSError | None] = [None]
        if self.leads:
            try:
                result = work()
            except (VaferError, OSError) as error:
                told = [error]
        if self.size > 1:
            dist.broadcast_object_list(told)
        if told[0] is not None:
            raise told[0]
        return result


@contextmanager
def join_team(device: str) -> Iterator[tuple[Team, torch.device]]:
    """The team that torchrun made of this process, and the process's own device.

    device: `auto`, `cpu`, `cuda` or `cuda:N`. Of several processes each takes the GPU of its local
    rank. Raises UsageError where a GPU is asked for and there is none.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = _device(device, local if size > 1 else None)
    if size == 1:
        yield Team(), chosen
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # The others wait while one makes the crops, which may take hours.
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(days=1))
    try:
        yield Team(dist.get_rank(), size), chosen
        # gloo's threads let go of the last broadcast's tensors when they come to it; where the
        # interpreter has ended by then they abort the process. This gives them the time.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _device(name: str, local: int | None) -> torch.device:
    n_gpus = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if n_gpus else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        index = local if local is not None else device.index or 0
        if index >= n_gpus:
            raise UsageError(f"device is {name}: GPU {index} is wanted, {n_gpus} found")
        return torch.device("cuda", index)
    return device


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, team: Team) -> torch.Tensor:
        ctx.rows = team.rows
        parts = [torch.empty_like(own) for _ in range(team.size)]
        dist.all_gather(parts, own.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0][ctx.rows], None


class _Sum(torch.autograd.Function):
    """Sum over the processes; each one's loss depends on it, so gradients are added up too."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor) -> torch.Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation by the statistics of the global batch.

    PyTorch's SyncBatchNorm does the same on GPUs only, and then the equality of several processes
    and one could not be tested on a CPU.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        values = x.to(self.running_mean)
        n = values.numel() // values.shape[1] * dist.get_world_size()  # shares are equal
        mean = _total(values.sum(dim=(0, 2, 3))) / n
        centred = values - mean[:, None, None]
        variance = _total(centred.square().sum(dim=(0, 2, 3))) / n
        if self.track_running_stats:
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(variance.detach() * n / (n - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def _total(own: torch.Tensor) -> torch.Tensor:
    """Sum over the processes, differentiable."""
    return cast(torch.Tensor, _Sum.apply(own))


def synchronise_batch_norm(module: nn.Module) -> None:
    """Make every batch normalisation in a module one of the global batch, in place."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = GlobalBatchNorm2d


def has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(child, nn.BatchNorm2d) for child in module.modules())


@contextmanager
def still_batch_norm(module: nn.Module) -> Iterator[None]:
    """Within it, batch statistics normalise as ever, but the running ones do not move."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
