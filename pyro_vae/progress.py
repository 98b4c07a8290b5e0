"""A live line on long work: where it stands, how fast it goes, how long it will take."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tqdm import tqdm

from pyro_vae.turns import out_of_turn


class Record(NamedTuple):
    """The state of a run at one moment; what callbacks are given.

    Attributes:
        step: updates taken.
        samples: rows x updates.
        seconds: since the first step.
        columns: means since the record before, nats per datum; ``bound``, ``kl.z``, ...
        program: the program, as it is now.
        best_step: of the highest held-out bound so far; None before the first.
    """

    step: int
    samples: int
    seconds: float
    columns: dict[str, float]
    program: Any = None
    best_step: int | None = None


@contextlib.contextmanager
def reporter(
    progress: bool | Callable[[Record], Any] | None, total: int, *, label: str
) -> Iterator[Callable[[Record], Any]]:
    """A listener for records, as ``pv.fit`` tells of its ``progress``.

    A live line on stderr; a line a minute where that is no terminal but a log or a notebook, and
    nobody insists on either; a callable of the user's; or nothing.
    """
    _require_progress(progress)
    if callable(progress):
        yield functools.partial(out_of_turn, progress)
        return
    if progress is None and not sys.stderr.isatty():
        yield line_a_minute(label, total)
        return
    show = progress is None or progress
    with tqdm(
        total=total, desc=label, unit=" samples", unit_scale=True, disable=not show,
        file=sys.stderr, dynamic_ncols=True,
    ) as line:  # fmt: skip

        def report(record: Record) -> None:
            line.update(record.samples - line.n)
            line.set_postfix(_shown(record))

        yield report


def _require_progress(progress: Any) -> None:
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise TypeError(
            f"progress is {progress!r}, expected None, True, False or a function of a record"
        )


@contextlib.contextmanager
def counting(
    progress: bool | Callable[[Record], Any] | None,
    total: int,
    *,
    label: str,
    unit: str = " data",
) -> Iterator[Callable[..., None]]:
    """A line for work that is counted and has no bound: ``advance(n)`` says that n more are done.

    By the rules of :func:`reporter`; a callable is given a :class:`Record` without columns, whose
    ``samples`` is what is done so far.

    Args:
        progress: as of ``pv.fit``.
        total: how much there is to do; the time that is left is estimated from it.
        label: what is done.
        unit: what is counted, with the space before it.
    """
    _require_progress(progress)
    began, calls, done = time.monotonic(), 0, 0

    def record(n: int) -> Record:
        nonlocal calls, done
        calls, done = calls + 1, min(done + n, total)
        return Record(calls, done, time.monotonic() - began, {})

    if callable(progress):
        yield lambda n=1: out_of_turn(progress, record(n))
        return
    if progress is None and not sys.stderr.isatty():
        tell = line_a_minute(label, total, unit=unit)
        yield lambda n=1: tell(record(n))
        return
    with tqdm(
        total=total, desc=label, unit=unit, disable=progress is False, file=sys.stderr,
        dynamic_ncols=True,
    ) as line:  # fmt: skip
        yield lambda n=1: line.update(record(n).samples - line.n) and None


def line_a_minute(
    label: str, total: int, every: float = 60.0, unit: str = " samples"
) -> Callable[[Record], None]:
    """Prints a line on stderr at the first record after each minute."""
    told = time.monotonic()

    def tell(record: Record) -> None:
        nonlocal told
        if time.monotonic() - told >= every:
            told = time.monotonic()
            done = f"{record.samples:,} of {total:,}{unit} in {record.seconds:.0f} s"
            if not record.columns and record.samples:
                left = record.seconds * (total - record.samples) / record.samples
                done += f", {left:.0f} s left"
            numbers = [f"{name} {value}" for name, value in _shown(record).items()]
            print(f"{label}: {', '.join([done, *numbers])}", file=sys.stderr, flush=True)

    return tell


def _shown(record: Record) -> dict[str, str]:
    """What a line says of a record."""
    names = {"bound": "bound", "loss": "loss", "validation_bound": "held out"}
    shown = {
        said: f"{record.columns[name]:.2f}"
        for name, said in names.items()
        if name in record.columns
    }
    if record.best_step is not None:
        shown["best at step"] = str(record.best_step)
    return shown
