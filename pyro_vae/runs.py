"""What a training leaves: the program, its history, and what made them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pyro_vae.objectives.base import EMPTY, State


@dataclass
class Run:
    """What ``fit`` returns.

    Attributes:
        program: the program that was passed, trained.
        history: a data frame, one row a record: step, samples, seconds, the objective's columns
            averaged since the record before (nats per datum), gradient norm, held-out bound.
        manifest: data digest, binarization, seed, engine, versions and settings.
        state: the objective's memory.
    """

    program: nn.Module
    history: Any
    manifest: dict[str, Any]
    state: State = EMPTY

    def __repr__(self) -> str:
        last = self.history.iloc[-1] if len(self.history) else {}
        shown = [
            f"{name} {last[name]:.2f}" for name in ("bound", "validation_bound") if name in last
        ]
        return (
            f"Run({self.manifest['objective']} on {self.manifest['program']}: "
            f"{self.manifest['samples']} samples in {self.manifest['seconds']:.1f} s; "
            f"{', '.join(shown) or 'no bound'})"
        )

    def save(self, path: str | Path) -> None:
        """Write to a folder what ``pv.load(path)`` reads (to go on later, pass ``out`` to fit)."""
        from pyro_vae.checkpoint import save_run  # which loads runs, and so imports this file

        save_run(self, path)
