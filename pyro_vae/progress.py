"""A live line on long work: where it stands, how fast it goes, how long it will take."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tqdm import tqdm


class Record(NamedTuple):
    """The state of a run at one moment; what callbacks are given.

    Attributes:
        step: updates taken.
        samples: rows x updates.
        seconds: since the first step.
        columns: means since the record before, nats per datum; ``bound``, ``kl.z``, ...
        program: the program, as it is now.
    """

    step: int
    samples: int
    seconds: float
    columns: dict[str, float]
    program: Any = None


@contextlib.contextmanager
def reporter(
    progress: bool | Callable[[Record], Any] | None, total: int, *, label: str
) -> Iterator[Callable[[Record], Any]]:
    """A listener for records: a line on stderr, a callable of the user's, or nothing."""
    if callable(progress):
        yield progress
        return
    show = sys.stderr.isatty() if progress is None else progress
    with tqdm(
        total=total, desc=label, unit=" samples", unit_scale=True, disable=not show,
        file=sys.stderr, dynamic_ncols=True,
    ) as line:  # fmt: skip

        def report(record: Record) -> None:
            line.update(record.samples - line.n)
            shown: dict[str, float] = {
                n: record.columns[n] for n in ("bound", "loss") if n in record.columns
            }
            if "validation_bound" in record.columns:
                shown["held out"] = record.columns["validation_bound"]
            line.set_postfix({name: f"{value:.2f}" for name, value in shown.items()})

        yield report
