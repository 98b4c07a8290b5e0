"""The one warning class of the package, and the checks of what callers give: numbers, and files.

A number is whole or real for what it is worth, not for its type: 1e3, numpy's and torch's scalars
are as good as 1000.  Truth values, text and None are no numbers.  What comes back is Python's own.
"""

from __future__ import annotations

import importlib
import math
import numbers
import reprlib
import stat
import sys
from pathlib import Path
from typing import Any


class PyroVaeWarning(UserWarning):
    """A number is at risk: an unreliable estimate, a value at its bound, a sampled KL term."""


def whole(
    name: str, value: Any, least: int | None = 1, most: int | None = None, why: str = ""
) -> int:
    """A whole number from ``least`` to ``most``, as an int.

    Args:
        name: what the caller knows it by, for the message.
        value: what was given.
        least, most: the bounds, both allowed; None for none.
        why: what to do, or why, for the end of the message.

    Raises:
        TypeError: no number at all.
        ValueError: a fraction, an infinity, nan, or out of bounds.
    """
    expected = "a whole number"
    if most is not None:
        expected += f" from {least} to {most}"
    elif least is not None:
        expected += f" from {least} on"
    given = _number(name, value, expected, why)
    fits = _is_whole(given, 2**63)  # Python's whole numbers have no end, and torch's have 64 bits
    if most is None and given >= 2**63:
        expected += ", below 2**63"
    if not (fits and (least is None or given >= least) and (most is None or given <= most)):
        raise ValueError(_message(name, value, expected, why))
    return int(given)


def seed_number(value: Any, name: str = "seed") -> int:
    """A seed as an int.

    Raises:
        TypeError, ValueError: as of :func:`whole`; or 2**62 and more, which leaves no room to
            tell steps and replicas apart.
    """
    expected = "a whole number below 2**62"
    given = _number(name, value, expected, "")
    if not _is_whole(given, 2**62):
        raise ValueError(_message(name, value, expected, ""))
    return int(given)


def positive(name: str, value: Any, why: str = "") -> float:
    """A finite number above 0, as a float.

    Raises:
        TypeError, ValueError: as of :func:`within`.
    """
    return _bounded(name, value, "(0, inf)", "a positive number", why)


def within(name: str, value: Any, interval: str, why: str = "") -> float:
    """A finite number of an interval such as "[0, 1)", as a float.

    Raises:
        TypeError: no number at all.
        ValueError: an infinity, nan, or outside of the interval.
    """
    return _bounded(name, value, interval, f"a number in {interval}", why)


def regular_file(path: Any, shown: str, advice: str) -> Path:
    """The path of a file that is there and has an end; ``~`` is the home directory.

    Args:
        path: what was given.
        shown: what the caller knows it by, for the message.
        advice: what to do, for the end of the message.

    Raises:
        ValueError: nothing is there, or what ends never, or not here: a pipe, a device, a
            directory; says what it is instead.
    """
    try:
        path = Path(path).expanduser()
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ValueError(f"{shown}: no such file; {advice} (from {_here()})") from None
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, nobody's home directory
        why = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ValueError(f"{shown}: {why}; {advice}") from None
    if not stat.S_ISREG(mode):
        kinds = {"is a directory": stat.S_ISDIR, "is a pipe": stat.S_ISFIFO,
                 "is a socket": stat.S_ISSOCK}  # fmt: skip
        what = next((name for name, fits in kinds.items() if fits(mode)), "is a device")
        raise ValueError(f"{shown}: {what}, expected a file; {advice}")
    return path


def users_line() -> int:
    """How far up a line of the user's is, and not ours, Pyro's or torch's: a `stacklevel`."""
    level, frame = 1, sys._getframe(1)
    own = ("pyro_vae", "pyro", "torch")
    while str(frame.f_globals.get("__name__")).split(".")[0] in own and frame.f_back:
        level, frame = level + 1, frame.f_back
    return level


def require_libraries(*names: str) -> None:
    """Import what a result will be written with, before there is one.

    Raises:
        ValueError: which is missing, and how to get it.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(
                f"the results cannot be written without {name} ({error}): pip install "
                f"{name.partition('.')[0]}"
            ) from error


# --- parts --------------------------------------------------------------------------------------


def _here() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # it was removed
        return "a folder that is gone"


def _is_whole(given: Any, below: int) -> bool:
    return abs(given) < below and given == int(given)


def _bounded(name: str, value: Any, interval: str, expected: str, why: str) -> float:
    given = _number(name, value, expected, why)
    if abs(given) > sys.float_info.max:  # an infinity, or a whole number that no float can hold
        raise ValueError(_message(name, value, expected, why))
    low, high = map(float, interval[1:-1].split(","))
    above = given >= low if interval[0] == "[" else given > low
    below = given <= high if interval[-1] == "]" else given < high
    if not (math.isfinite(given) and above and below):
        raise ValueError(_message(name, value, expected, why))
    return float(given)


def _number(name: str, value: Any, expected: str, why: str) -> Any:
    """The number as Python's own; of a tensor or an array, a single one without dimensions."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(_message(name, value, expected, why, type(value).__name__))
    return value


def _message(name: str, value: Any, expected: str, why: str, kind: str = "") -> str:
    got = " ".join(reprlib.repr(value).split()) + (f" ({kind})" if kind else "")
    return f"{name} is {got}, expected {expected}" + (f": {why}" if why else "")
