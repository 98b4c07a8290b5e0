"""Work that is kept: a reproduction stops at any moment, and goes on where it was.

A folder holds::

    numbers.json, table.csv, *.png    the result, written anew whenever there is more of it
    pieces/NAME.json                  what was computed once, and the settings that it is of
    runs/NAME                         a training's checkpoint, which `pv.load` reads
    runs/NAME.settings.json           what it was begun with

A piece or a run whose settings are others than those asked for is refused, not mixed in.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pyro_vae import errors
from pyro_vae.runs.run import Run, load
from pyro_vae.runs.storage import MANIFEST
from pyro_vae.runs.writer import folder_for
from pyro_vae.training.fitting import fit


def write_json(path: Path, value: Any) -> Path:
    """Beside its place and then renamed, so that it is never there by half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(value, separators=(",", ":")) + "\n")
    os.replace(part, path)
    return path


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it to compute it again") from None


class Shelf:
    """The folder of one reproduction.

    Args:
        out: the folder; it is made if it is not there.
        runs: where trainings are kept, if not in ``out/runs``: figures that need the same ones
            may share them.
        progress: as of ``pv.fit``.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        runs: str | Path | None = None,
        progress: Any = None,
        device: str | None = None,
    ) -> None:
        self.out = folder_for(out, resume=True)
        self.runs = self.out / "runs" if runs is None else Path(runs)
        self.progress, self.device = progress, device

    def piece(self, name: str, settings: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """What ``make`` returned when it was first called with these settings: plain values.

        Raises:
            ValueError: it was made with others.
        """
        path = self.out / "pieces" / f"{name}.json"
        plain = json.loads(json.dumps(dict(settings)))
        if path.exists():
            kept = read_json(path)
            self._require_same(path, kept["settings"], plain)
            return kept["value"]
        value = make()
        write_json(path, {"settings": plain, "value": value})
        return value

    def run(
        self,
        name: str,
        settings: Mapping[str, Any],
        build: Callable[[], nn.Module],
        x: Any,
        objective: Any,
        *,
        samples: int,
        **options: Any,
    ) -> Run:
        """A training that goes on from what is there; at ``samples``, or later if it is further.

        Args:
            name: of its folder.
            settings: what it is to be told apart by: plain values.
            build: makes the untrained program.
            x, objective: as in ``pv.fit``.
            samples: the budget.
            options: the others of ``pv.fit``.

        Raises:
            ValueError: it was begun with other settings.
        """
        samples = errors.whole("budget", samples)
        folder, said = self.runs / name, self.runs / f"{name}.settings.json"
        plain = json.loads(json.dumps(dict(settings)))
        if said.exists():
            self._require_same(said, read_json(said), plain)
        else:
            write_json(said, plain)
        program = build()
        if (folder / MANIFEST).exists() and self.samples_of(name) >= samples:
            run = load(folder, program)
            if self.device is not None:
                run.program.to(self.device)
            return run
        if self.progress is None or self.progress is True:  # which one the live line is of
            there = self.samples_of(name)
            print(f"{name}: from {there:,} to {samples:,} samples", file=sys.stderr, flush=True)
        try:
            return fit(
                program, x, objective, samples=samples, out=folder,
                resume=(folder / MANIFEST).exists(),
                device=self.device, progress=self.progress, **options,
            )  # fmt: skip
        except (KeyboardInterrupt, SystemExit) as error:
            if hasattr(error, "path"):  # it is this folder that the user named, and no flag goes on
                vars(error).update(path=self.out, flag="")
            raise

    def samples_of(self, name: str) -> int:
        """How far a training is."""
        path = self.runs / name / MANIFEST
        return read_json(path)["manifest"]["samples"] if path.exists() else 0

    def _require_same(self, path: Path, kept: dict[str, Any], asked: dict[str, Any]) -> None:
        wrong = [
            f"{name} {asked.get(name)!r}, there {kept.get(name)!r}"
            for name in {**kept, **asked}
            if kept.get(name) != asked.get(name)
        ]
        if wrong:
            raise ValueError(
                f"{path} is of other settings ({'; '.join(wrong)}): name another folder as out, "
                "or give the settings of before"
            )
