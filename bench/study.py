"""What the studies share: runs side by side in processes of their own, cells of their tables."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import numpy as np


def run_side_by_side(
    tasks: Mapping[str, tuple[Callable[..., None], tuple[Any, ...]]], jobs: int | None
) -> None:
    """Call the functions of tasks, by name, `jobs` at a time, and say how each ended.

    jobs: None takes one a core, or one alone where there is a GPU. The cores are shared out.
    """
    import torch

    cores = len(os.sched_getaffinity(0))
    jobs = jobs or (1 if torch.cuda.is_available() else cores)
    threads = (max(1, cores // jobs),)
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, threads) as pool:
        running = {pool.submit(run, *given): name for name, (run, given) in tasks.items()}
        failed = []
        try:
            for number, task in enumerate(as_completed(running), 1):
                error = task.exception()
                failed += [running[task]] if error else []
                print(f"{number}/{len(tasks)} {running[task]}: {error or 'done'}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: {', '.join(failed)}")


def cell(values: list[float | None]) -> str:
    """Mean ± standard deviation over seeds, or in how many of them the score is undefined."""
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return f"undefined in {len(values) - len(known)}"
    sd = f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else ""
    return f"{np.mean(known):.3f}{sd}"


def folder_name(row: str) -> str:
    return row.replace(", ", "-").replace(" ", "_")
