"""Experiment trackers: where a run's numbers go while it trains.

A :class:`Tracker` has six members, those of sbi's protocol of that name, so that its adapters for
Weights & Biases, MLflow, TensorBoard and Trackio are trackers here as they are.  ``pv.fit(...,
tracker=...)`` calls it at the records of a run (about 200 of them and the held-out evaluations),
never between, so no step is slower for it:

=================  =========================================================================
when               what
=================  =========================================================================
before step 1      ``log_params``: the manifest's settings, flat, as "optimizer_options.lr"
at a record        ``log_metrics``: its columns, "step" and "seconds"; ``step=`` is the number
                   of *samples* (rows x updates), which runs of any batch size share
at the end, also   ``add_figure("training_curve", figure, step=samples)``, then ``flush``
on Ctrl-C
=================  =========================================================================

Source of the protocol: Tejero-Cantero et al. (2020), sbi, ``sbi/utils/tracking.py``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from pyro_vae.errors import PyroVaeWarning, users_line
from pyro_vae.progress import Record
from pyro_vae.runs.history import History

logger = logging.getLogger("pyro_vae")

METHODS = ("log_metric", "log_metrics", "log_params", "add_figure", "flush")
PATIENCE = 3  # failures in a row, each of which may be a timeout, before no more is sent
LONGEST = 250  # letters of a parameter, which is what MLflow's oldest servers take


class Tracker(Protocol):
    """What ``pv.fit`` tells of a run to."""

    @property
    def log_dir(self) -> str | None:
        """Where it writes, if that is a folder."""

    def log_metric(self, name: str, value: float, step: int | None = None) -> None:
        """One number."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Several numbers of one moment."""

    def log_params(self, params: dict[str, Any]) -> None:
        """What a run was made with."""

    def add_figure(self, name: str, figure: Any, step: int | None = None) -> None:
        """A figure of matplotlib."""

    def flush(self) -> None:
        """Nothing that was told is lost from here on."""


class CSVTracker:
    """A table with a row for each number of samples: the tracker that needs nothing else.

    Parameters go to ``NAME.params.json`` beside it, figures to ``NAME.FIGURE.png``.  The file is
    whole at any moment.

    Args:
        path: the file, ``curve.csv``.
        append: go on with a file that is there, as a resumed run does.

    Raises:
        FileExistsError: the file is there, and ``append`` is False.
        NotADirectoryError: its folder is not.
        IsADirectoryError: it is a folder itself.
        ValueError: the file to go on with is no such table.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "curve.csv"
        >>> tracker = CSVTracker(path)
        >>> tracker.log_metrics({"bound": -120.5}, step=100)
        >>> tracker.flush()
        >>> print(path.read_text().strip())
        samples,bound
        100,-120.5
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False) -> None:
        self.path = Path(path)
        self._rows: dict[int | None, dict[str, Any]] = {}
        if not self.path.parent.is_dir():
            raise NotADirectoryError(f"{self.path.parent} is no folder: make it, or name another")
        if self.path.is_dir():
            raise IsADirectoryError(f"{self.path} is a folder: name a file in it, curve.csv")
        if not self.path.exists():
            return
        if not append:
            raise FileExistsError(
                f"{self.path} exists, expected a new file: name another, or go on with it by "
                "resume, or CSVTracker(path, append=True)"
            )
        import pandas as pd

        try:
            table = pd.read_csv(self.path)
        except ValueError as error:  # pandas' own and those of decoding are ValueErrors
            raise ValueError(f"{self.path} is no table ({error}): name another file") from error
        if "samples" not in table:
            raise ValueError(
                f"{self.path} has no column samples, expected a file that a CSVTracker wrote: name "
                "another one"
            )
        for row in table.to_dict("records"):
            step = row.pop("samples")
            kept = {name: value for name, value in row.items() if value == value}
            self._rows[None if step != step else int(step)] = kept

    @property
    def log_dir(self) -> str:
        return str(self.path.parent)

    def log_metric(self, name: str, value: float, step: int | None = None) -> None:
        self.log_metrics({name: value}, step)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._rows.setdefault(step, {}).update(metrics)
        self.flush()  # there are some hundreds, and nobody asks a program that died

    def log_params(self, params: dict[str, Any]) -> None:
        text = json.dumps(params, indent=1, default=str)
        self._beside("params.json").write_text(text + "\n")

    def add_figure(self, name: str, figure: Any, step: int | None = None) -> None:
        figure.savefig(self._beside(f"{name.replace('/', '_')}.png"), dpi=150)

    def flush(self) -> None:
        import pandas as pd

        rows = [{"samples": step, **row} for step, row in self._rows.items()]
        part = self._beside("part")
        pd.DataFrame(rows, columns=None if rows else ["samples"]).to_csv(part, index=False)
        part.replace(self.path)

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(f"{self.path.stem}.{ending}")


def trackers_of(tracker: Any, count: int, *, append: bool) -> list[Guarded]:
    """None, one for all runs, or one for each; a path is a :class:`CSVTracker`.

    Raises:
        TypeError: something without the methods; ValueError: another number of them than of runs.
    """
    if tracker is None:
        return []
    several = isinstance(tracker, Sequence) and not isinstance(tracker, str)
    given = list(tracker) if several else [tracker]
    if several and len(given) != count:
        raise ValueError(f"tracker has {len(given)} for {count} runs, expected one for each")
    found = []
    for each in given:
        if isinstance(each, str | os.PathLike):
            each = CSVTracker(each, append=append)
        lacks = [name for name in METHODS if not callable(getattr(each, name, None))]
        if lacks or isinstance(each, type):
            got = f"the class {each.__name__}" if isinstance(each, type) else repr(each)
            raise TypeError(
                f"tracker is {got}, expected a path, or an object with the methods of "
                f"pyro_vae.training.Tracker; it lacks {', '.join(lacks) or 'an instance'}"
            )
        found.append(Guarded(each))
    return found


class Guarded:
    """A tracker that cannot end a day's training: what it raises is said once."""

    def __init__(self, tracker: Any) -> None:
        self.tracker = tracker
        self._said, self._failed = False, 0

    def __call__(self, method: str, *args: Any, **options: Any) -> None:
        self.attempt(method, lambda: getattr(self.tracker, method)(*args, **options))

    def attempt(self, method: str, told: Callable[[], None]) -> None:
        """Tell it what ``told`` tells."""
        if self._failed >= PATIENCE:
            return
        try:
            told()
            self._failed = 0
        except Exception as error:
            self._failed += 1
            name = type(self.tracker).__name__
            if not self._said:
                self._said = True
                warnings.warn(
                    f"{name}.{method} raised {type(error).__name__} ({error}): training goes on, "
                    "and what it was to be told is lost; run.history has all of it",
                    PyroVaeWarning,
                    stacklevel=users_line(),
                )
            if self._failed == PATIENCE:
                logger.warning("%s failed %d times in a row: no more is sent", name, PATIENCE)


@contextlib.contextmanager
def tracking(
    trackers: Sequence[Guarded],
    manifests: Sequence[dict[str, Any]],
    histories: Callable[[int], History],
) -> Iterator[list[Callable[[Record], None]]]:
    """Tell trackers of runs side by side: yields a listener for each run.

    Args:
        trackers: none, one or as many as runs.  One that serves several runs is told
            "bound/0", "bound/1", ..., the numbers of replicas.
        manifests: of the runs.
        histories: from the number of a run to its records.
    """
    if not trackers:
        yield [lambda record: None for _ in manifests]
        return
    count = len(manifests)
    alone = len(trackers) == count
    params = [settings_of(manifest) for manifest in manifests]
    if alone:
        for tracker, own in zip(trackers, params, strict=True):
            tracker("log_params", own)
    else:
        trackers[0]("log_params", together(params))

    def listener(number: int) -> Callable[[Record], None]:
        tracker, suffix = (trackers[number], "") if alone else (trackers[0], f"/{number}")

        def listen(record: Record) -> None:
            metrics = {"step": float(record.step), "seconds": record.seconds, **record.columns}
            named = {f"{name}{suffix}": float(value) for name, value in metrics.items()}
            tracker("log_metrics", named, step=record.samples)

        return listen

    try:
        yield [listener(number) for number in range(count)]
    finally:
        for number in range(count):
            tracker = trackers[number] if alone else trackers[0]
            draw(tracker, histories(number), "" if alone else f"/{number}")
        for tracker in trackers:
            tracker("flush")


def settings_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The settings of a manifest as plain values by name; of parts their classes."""
    found: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                add(f"{name}.{key}", part)
        elif isinstance(value, bool | int | float) or value is None:
            found[name] = value
        else:
            found[name] = str(value)[:LONGEST]

    for name, value in manifest.items():
        if name == "parts":
            value = {part: said["class"] for part, said in value.items() if "." not in part}
        if name not in ("objective_record", "schedule_record", "row"):
            add(name, value)
    return found


def together(params: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings of several runs: those in which they differ by their numbers."""
    found: dict[str, Any] = {}
    for name, value in params[0].items():
        values = [each.get(name) for each in params]
        if all(each == value for each in values):
            found[name] = value
        else:
            found |= {f"{name}/{number}": each for number, each in enumerate(values)}
    return found


def draw(tracker: Guarded, history: History, suffix: str) -> None:
    """The learning curve so far, where there is one."""
    frame = history.frame()

    def told() -> None:
        from pyro_vae.plotting.training import training_curve

        figure = training_curve(frame).figure  # (of axes, or of itself)
        step = int(frame["samples"].iloc[-1])
        tracker.tracker.add_figure(f"training_curve{suffix}", figure, step=step)

    if len(frame):
        tracker.attempt("add_figure", told)
