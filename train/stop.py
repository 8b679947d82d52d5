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


AGREED_EVERY = 20  # iterations; torchrun kills what has not stopped after 30 s


@contextmanager
def stop_asked(team: Team) -> Iterator[Callable[[int], bool]]:
    """Within it, a first Ctrl-C or SIGTERM is remembered instead of striking within an iteration.

    Gives a function that says whether to stop after an iteration, by its number (0 between two
    runs). A team has to agree, which costs time, so it asks now and then. A second Ctrl-C strikes
    at once.
    """
    asked = threading.Event()

    def remember(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    def stops(iteration: int) -> bool:
        if team.size == 1:
            return asked.is_set()
        return iteration % AGREED_EVERY == 0 and team.any(asked.is_set())

    if threading.current_thread() is not threading.main_thread():
        yield stops
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, remember) for number in signals}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
