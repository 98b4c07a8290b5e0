"""Ctrl-C, SIGTERM and SIGHUP as a wish: noted, and obeyed when the state is on disk."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from pyro_vae.torch_internals import ready_to_end
from pyro_vae.turns import has_turn

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


@contextlib.contextmanager
def obeyed_between_steps() -> Iterator[Callable[[], None]]:
    """Ctrl-C during a step waits for its end, so that none is taken by half; yields the check.

    At all other times, in a callback or while another thread has its turn, it comes at once; and
    so does a second one.  A handler of the user's own is left alone.
    """
    before: Any = signal.getsignal(signal.SIGINT)
    caught: list[int] = []
    cancelled = cancelled_elsewhere()

    def note(number: int, frame: FrameType | None) -> None:
        if caught or not has_turn():
            raise KeyboardInterrupt
        caught.append(number)

    def check() -> None:
        if caught or cancelled():
            raise KeyboardInterrupt("stopped after a whole step")

    ours = threading.current_thread() is threading.main_thread() and (
        before is signal.default_int_handler or _main_task(before) is not None
    )
    try:
        if ours:
            signal.signal(signal.SIGINT, note)
        yield check
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
    check()


def cancelled_elsewhere() -> Callable[[], bool]:
    """Whether Ctrl-C cancelled the task of asyncio that this thread, not the main one, works for.

    No signal comes to such a thread, and ``asyncio.run`` waits for it before it ends.
    """
    task = _main_task(signal.getsignal(signal.SIGINT))
    if task is None or threading.current_thread() is threading.main_thread():
        return lambda: False
    return lambda: task.done() or task.cancelling() > 0


def _main_task(handler: Any) -> Any:
    """What asyncio's own handler of Ctrl-C cancels; None of other handlers."""
    return getattr(handler, "keywords", {}).get("main_task")


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
