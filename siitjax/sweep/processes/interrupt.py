"""SIGINT and SIGTERM, heeded: the first asks for an orderly end, a second Ctrl-C leaves at once."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """A context in which the two signals set `event` and call `ask`.

    Attributes:
        event: set once a signal came.
        signal: the first that came, or None.
    """

    def __init__(self, ask: Callable[[], None]):
        self.event = threading.Event()
        self.signal: int | None = None
        self.ask = ask
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._heed)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """What the shell expects of a process that ended by the signal."""
        return 128 + (self.signal or 0)

    def _heed(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            self.event.set()
            self.ask()
        elif number == signal.SIGINT:
            os._exit(128 + number)
