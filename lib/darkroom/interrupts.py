"""Requests to stop that a training loop honours at the end of its step: SIGTERM and SIGINT."""

from __future__ import annotations

import signal
import threading


class Interrupted(KeyboardInterrupt):
    """SIGINT (Ctrl-C, or Interrupt in Lab) ended a run after a finished and saved step."""

    def _render_traceback_(self) -> list[str]:
        # in a notebook the message is enough: this is no fault
        return [str(self)]


class Terminated(SystemExit):
    """SIGTERM ended a run after a finished and saved step; the process exits with status 143."""

    def __init__(self, message: str) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopSignals:
    """While active, SIGTERM and SIGINT are noted in `received`; a second SIGINT interrupts."""

    def __enter__(self) -> StopSignals:
        self.received: int | None = None
        self.previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
