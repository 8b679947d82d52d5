"""How a run is stopped between two iterations, and timed between two logged ones."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from train.parallel import Team


class Clock:
    """Images a second between logged steps; what is paused does not count."""

    def __init__(self, step: int) -> None:
        self.step, self.since = step, time.perf_counter()

    def rate(self, step: int, batch_size: int) -> float:
        now = time.perf_counter()
        rate = (step - self.step) * batch_size / max(now - self.since, 1e-9)
        self.step, self.since = step, now
        return round(rate, 1)

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start


@contextmanager
def stop_asked(team: Team) -> Iterator[Callable[[bool], bool]]:
    """Within it, a first Ctrl-C or SIGTERM is remembered instead of striking within an iteration.

    Gives a function that says whether to stop now, after an iteration. A team has to agree, which
    costs time: it asks only where `is_time` is true. A second Ctrl-C strikes at once.
    """
    asked = threading.Event()

    def remember(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    def stops(is_time: bool) -> bool:
        return asked.is_set() if team.size == 1 else is_time and team.any(asked.is_set())

    if threading.current_thread() is not threading.main_thread():
        yield stops
        return
    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
