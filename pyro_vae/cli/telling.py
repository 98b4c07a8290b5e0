"""What a command says on stderr: the one line of a refusal, or what its user should know.

A refusal is one line.  Warnings, and what was read of a file, would stand before it and hide it, so
they wait a few seconds, within which a command is refused, and are said when it has begun to work.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from pyro_vae.cli.ranks import rank, speaks
from pyro_vae.errors import PyroVaeWarning

PATIENCE = 5.0  # seconds
MOST_CHARACTERS = 1000


class Note(UserWarning):
    """What is no warning, and goes the same way: what was read of a file."""


class Notes:
    """The lines that wait.

    Args:
        verb: what they begin with.
    """

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self._waiting: list[str] | None = []  # None once nothing waits any more
        self._told: set[str] = set()  # compare has several runs, and each of them may say the same
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Take the warnings of the package, and notes; what still waits is said at the end."""
        with warnings.catch_warnings():
            for kind in (PyroVaeWarning, Note):
                warnings.simplefilter("always", kind)
            warnings.filterwarnings("ignore", category=FutureWarning, module="arviz")  # its plans
            otherwise = warnings.showwarning

            def show(message: Any, category: type[Warning], *rest: Any, **options: Any) -> None:
                if issubclass(category, PyroVaeWarning):
                    self.say(f"pyro-vae {self.verb}: warning: {message}")
                elif issubclass(category, Note):
                    self.say(f"pyro-vae: {message}")
                else:
                    otherwise(message, category, *rest, **options)

            warnings.showwarning = show
            try:
                yield
            finally:
                self.begin()

    def say(self, text: str) -> None:
        """Say a line once, now or when it is time."""
        line = one_line(text)
        with self._lock:
            if line in self._told or rank():  # of several processes the first says it
                return
            self._told.add(line)
            if self._waiting is None:
                _write(line)
                return
            self._waiting.append(line)
            if self._timer is None:
                self._timer = threading.Timer(PATIENCE, self.begin)
                self._timer.daemon = True
                self._timer.start()

    def begin(self) -> None:
        """Say what waits, and from now on everything at once."""
        with self._lock:
            lines, self._waiting = self._waiting or [], None
            for line in lines:
                _write(line)
            if self._timer is not None:
                self._timer.cancel()

    def forget(self) -> None:
        """Drop what waits: the command is refused."""
        with self._lock:
            self._waiting = None if self._waiting is None else []


def complain(verb: str, message: str) -> int:
    """Say why a command is refused; returns the exit code."""
    if not speaks():
        return 2
    said = f"pyro-vae {verb}".rstrip() + f": {message}"
    _write("\n".join(map(one_line, said.splitlines())))
    return 2


def one_line(text: str) -> str:
    """Without line breaks, and without what a terminal would obey; of a long one both ends."""
    words = " ".join(text.split()) if not text.startswith("  ") else text
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    if len(shown) <= MOST_CHARACTERS:
        return shown
    half = MOST_CHARACTERS // 2
    return f"{shown[:half]} ... {shown[-half:]}"


def _write(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # stderr is full, or closed: nobody reads it
        print(text, file=sys.stderr)
