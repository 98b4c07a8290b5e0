"""The command line: the package's verbs, with typed flags.

Libraries that take seconds to import (torch, pyro, arviz) are imported inside the verbs, so that
``pyro-vae --help`` answers at once.  A user's mistake is one line on stderr and exit code 2.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is 2 for a user's mistake, 130 for Ctrl-C, 143 for SIGTERM.

    Args:
        arguments: what follows ``pyro-vae``; without, that of this process, which ends after it.
    """
    from pyro_vae.cli.stopping import Stop  # little and quick: Ctrl-C is one line from here on

    given = list(sys.argv[1:] if arguments is None else arguments)
    command = " ".join(["pyro-vae", *given[:1]])
    if arguments is None:
        _open_streams()
    with (
        _printable(sys.stdout),
        Stop(command, ends_process=arguments is None) as stop,
    ):
        try:
            from pyro_vae.cli.running import run

            code = run(given, stop)
            try:
                sys.stdout.flush()
            except (OSError, ValueError):
                if not code:
                    raise
                _drop_output()  # one line is said, which is enough
            return code
        except BrokenPipeError:  # whoever read our output has left, as `head` does
            if arguments is not None:
                raise
            _drop_output()
            return 128 + 13  # as of SIGPIPE
        except (OSError, ValueError) as error:  # ValueError: a user's file has closed it
            if stop.caused(error):
                return stop.told(error)
            _drop_output()
            why = getattr(error, "strerror", None) or str(error)
            with contextlib.suppress(OSError, ValueError):
                print(f"{command}: stdout: {why}; send it elsewhere", file=sys.stderr)
            return 2
        except BaseException as error:
            if not stop.caused(error):
                raise
            return stop.told(error)


def _open_streams() -> None:
    """Open what a caller has closed, lest a file of ours take its place and its output."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            endless = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, endless)


def _drop_output() -> None:
    """Have nothing written any more, where Python would try again on its way out."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- a console that cannot show all -------------------------------------------------------------

PLAIN = {"±": "+/-", "—": "-", "–": "-", "×": "x"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that a console's encoding does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(character, "?") for character in text), error.end


codecs.register_error("pyro_vae.plain", _plain)


@contextlib.contextmanager
def _printable(stream: Any) -> Iterator[None]:
    """Have print go through in any encoding: a result is not lost for a sign in its table."""
    before = getattr(stream, "errors", None)
    if before != "strict" or not hasattr(stream, "reconfigure"):
        yield
        return
    stream.reconfigure(errors="pyro_vae.plain")
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, OSError):  # closed, or its reader has left
            stream.reconfigure(errors=before)
