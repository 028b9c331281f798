"""The wish to stop: Ctrl-C, SIGTERM, or the time a run was given. It is looked at between steps and documents."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """`asked` for by a signal; `late` once the wall clock has passed the hours given (0: never)."""

    def __init__(self, hours: float = 0.0):
        self.asked = False
        self._deadline = time.monotonic() + hours * 3600 if hours else float("inf")

    @property
    def late(self) -> bool:
        return time.monotonic() >= self._deadline

    def wanted(self) -> bool:
        return self.asked or self.late


@contextmanager
def listening(stop: Stop) -> Iterator[None]:
    """While the block runs, signals become the wish to stop; a second Ctrl-C interrupts at once (KeyboardInterrupt).

    Outside the main thread signals are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hear(number, frame):
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True

    past = {number: signal.signal(number, hear) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in past.items():
            signal.signal(number, handler)
