"""Python files of the user's: imported, and named with a line where they fail."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyro_vae.errors import regular_file

MOST_BYTES = 1 << 22  # of a file of Python


def path_and_name(spec: str, otherwise: str) -> tuple[Path | None, str]:
    """``path/to/file.py:name`` in two; no path where a name of ours is meant."""
    head, colon, tail = spec.rpartition(":")
    if colon and (tail.isidentifier() or not tail) and len(head) > 1:
        return Path(head), tail or otherwise
    if spec.endswith(".py") or os.sep in spec or "/" in spec:
        return Path(spec), otherwise
    return None, otherwise


def python_file(path: Path) -> Path:
    """The path of a file that may be one of Python, ``~`` as the home directory.

    Raises:
        ValueError: says what it is instead.
    """
    file = regular_file(path, str(path), "expected a Python file, path/to/file.py:NAME")
    if file.suffix != ".py":
        what = f"a {file.suffix or 'nameless'} file"
        raise ValueError(f"{path}: is {what}, expected a Python file, path/to/file.py:NAME")
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path}: has more than {MOST_BYTES:,} bytes, expected a Python file")
    return file


def imported(path: Path) -> Any:
    """The module that a file is; it is run.

    Args:
        path: as :func:`python_file` gives it.

    Raises:
        ValueError: it fails, by its line.
    """
    shown, path = path, path.resolve()
    name = f"pyro_vae_model_{path.stem}"  # a file named torch.py must not become torch
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{shown}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for files that it imports from beside it
    try:
        with _nothing_written():
            spec.loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[name]
        line = f":{error.lineno}" if error.lineno else ""
        raise ValueError(f"{error.filename or shown}{line}: {error.msg}; correct it") from error
    except BaseException as error:  # whatever it raises, but for Ctrl-C
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        place = located(error, path) or f"{shown}: {told(error)}"
        ends = isinstance(error, SystemExit)
        advice = "guard it by if __name__ == '__main__':" if ends else "make the file run by itself"
        raise ValueError(f"{place}, at import; {advice}") from error
    _refuse_another_default_device(shown)
    return module


@contextlib.contextmanager
def _nothing_written() -> Iterator[None]:
    """Leave no compiled copy beside what may be refused, or lie where nothing can be written."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _refuse_another_default_device(shown: Path) -> None:
    """Data and noise are made by the package, which knows ``--device`` alone."""
    import torch

    if (device := torch.get_default_device()).type != "cpu":
        torch.set_default_device("cpu")
        raise ValueError(
            f"{shown}: sets torch's default device to {device}, at import; leave that out, and "
            "pass --device"
        )


def located(error: BaseException, path: Path | None, *, said: bool = True) -> str | None:
    """``file:line: what happened``, for the last line of the user's file that was running."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if path is not None and f.filename == str(path)]
    return f"{path}:{lines[-1]}{f': {told(error)}' if said else ''}" if lines else None


def told(error: BaseException) -> str:
    """An error of somebody else's, by its type."""
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r})"
    return shortage(error) or f"{type(error).__name__}: {words_of(error)}".rstrip(": ")


def words_of(error: BaseException) -> str:
    """Its message and its notes in one line; an error of somebody else's may fail to say it."""
    try:
        said = [str(error), *getattr(error, "__notes__", ())]  # such as where a state lies
        return "; ".join(" ".join(part.split()) for part in said)
    except Exception:
        return ""


def shortage(error: BaseException) -> str | None:
    """What to say where memory ran out; torch raises a RuntimeError with a dump of its stack."""
    lacks = r"out of memory|can't allocate memory|not enough memory"
    lacks += r"|[Uu]nable to allocate|size calculation overflowed"
    memory = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search(lacks, words_of(error))
    )
    if not memory:
        return None
    asked = re.search(r"allocate ([\d.]+ [KMGT]?i?B(?:ytes)?|\d+ bytes)", words_of(error))
    return f"out of memory{f' for {asked[1]}' if asked else ''}: ask for smaller sizes"
