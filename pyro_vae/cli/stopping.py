"""Ctrl-C and SIGTERM at any moment of a command: one line on stderr, exit code 130 or 143.

A signal raises in the main thread, so that what is half-written is cleared away.  But what it
raises may not arrive: an import in C turns it into another exception, and a finalizer or a
callback of the interpreter drops it with a traceback.  So the signal is noted as well, whatever
ends the command then is told as the signal, and what was dropped is raised again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from pyro_vae.cli.ranks import speaks

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
if hasattr(signal, "SIGHUP"):  # a terminal that is closed
    WORDS[signal.SIGHUP] = "hung up"


class Terminated(SystemExit):
    """What SIGTERM and SIGHUP raise."""


class Stop:
    """While it is entered, signals are obeyed as the module says.

    Args:
        command: what the line on stderr begins with.
        ends_process: the process ends with the command, so a second signal ends it at once, and
            none disturbs it on its way out.  Otherwise all is as before when the command is done.
    """

    def __init__(self, command: str, *, ends_process: bool) -> None:
        self.command, self.ends_process = command, ends_process
        self.noted = 0  # the number of a signal that is being obeyed
        self._before: dict[int, Any] = {}
        self._hooks = sys.unraisablehook, sys.excepthook

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            sys.unraisablehook, sys.excepthook = self._dropped, self._printed
            for number in WORDS:
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._raise)
        return self

    def __exit__(self, *_: object) -> None:
        if self.ends_process:
            self._ignore()
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook, sys.excepthook = self._hooks

    def caused(self, error: BaseException) -> bool:
        """Whether a signal is behind an error, be it one that ``fit`` noted or one of ours."""
        self.noted = self.noted or getattr(error, "signal", 0)
        if isinstance(error, KeyboardInterrupt):
            self.noted = self.noted or signal.SIGINT
        return bool(self.noted)

    def told(self, error: BaseException) -> int:
        """Write the line for a signal; returns the exit code."""
        self._ignore()  # another one would print a second line
        path = getattr(error, "path", None) if getattr(error, "signal", 0) else None
        flag = getattr(error, "flag", " with --resume")
        kept = f"; the run lies in {path}: the same command{flag} goes on" if path else ""
        if speaks():
            print(f"{self.command}: {WORDS[signal.Signals(self.noted)]}{kept}", file=sys.stderr)
        return 128 + self.noted

    def _ignore(self) -> None:
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self.noted and self.ends_process:
            os.write(2, f"{self.command}: {WORDS[signal.Signals(number)]}\n".encode())
            os._exit(128 + number)
        self.noted = number
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(128 + number)

    def _dropped(self, what: Any) -> None:
        if not (self.noted and issubclass(what.exc_type, (KeyboardInterrupt, Terminated))):
            self._hooks[0](what)
            return
        number, self.noted = self.noted, 0
        again = threading.Timer(0.02, os.kill, (os.getpid(), number))  # when the callback is left
        again.daemon = True
        again.start()

    def _printed(self, kind: type[BaseException], *rest: Any) -> None:
        if not (self.noted and issubclass(kind, KeyboardInterrupt)):  # in C, before another error
            self._hooks[1](kind, *rest)
