"""Ctrl-C, SIGTERM and SIGHUP as a wish: noted, and obeyed when the state is on disk."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from pyro_vae.torch_internals import ready_to_end

# SIGHUP comes when a terminal is closed or a connection breaks; not on every system.
NOTED = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Terminated(SystemExit):
    """A signal ended a run whose state is saved in ``path``; message in ``str``.

    The exit code is 143 of SIGTERM, 129 of SIGHUP.
    """

    def __init__(self, message: str, path: Path | None, number: int = signal.SIGTERM) -> None:
        super().__init__(128 + number)
        self.message, self.path, self.signal = message, path, number

    def __str__(self) -> str:
        return self.message


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """The first of these signals is noted in a list; the next goes to the handler before ours."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        put_back()

    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        for number in NOTED:
            if signal.getsignal(number) not in (None, signal.SIG_IGN):
                before[number] = signal.signal(number, note)
    try:
        yield caught
    finally:
        put_back()


def interruption(number: int, steps: int, folder: Path) -> BaseException:
    """What to raise once the state is saved: its message says where it lies and how to go on."""
    message = (
        f"stopped by {signal.Signals(number).name} after step {steps}; the state lies in {folder}: "
        f"go on with out={str(folder)!r}, resume=True"
    )
    if number != signal.SIGINT:
        return Terminated(message, folder, number)
    # No subclass: Python dies of this very class by SIGINT, which ends a shell's loop as well.
    ready_to_end()
    error = KeyboardInterrupt(message)
    vars(error).update(path=folder, signal=signal.SIGINT)
    return error
