"""What a run leaves behind: columns over time, and a manifest of what made them."""

from __future__ import annotations

from typing import Any

from pyro_vae.progress import Record


class History:
    """Collects per-step means and averages them from one record to the next."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._records: list[dict[str, float]] = []

    def add(self, means: dict[str, float], rows: int = 1) -> None:
        """Take in the means of one step over so many rows, which count for as much."""
        for name, value in means.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * rows
            self._counts[name] = self._counts.get(name, 0) + rows

    def record(self, *, step: int, samples: int, seconds: float, **extra: float) -> Record:
        """Close the window since the last record."""
        columns = {name: total / self._counts[name] for name, total in self._sums.items()}
        columns |= extra
        self._records.append({"step": step, "samples": samples, "seconds": seconds, **columns})
        self._sums, self._counts = {}, {}
        return Record(step, samples, seconds, columns)

    def frame(self) -> Any:
        """All records as a pandas data frame; held-out columns are nan where none was made."""
        import pandas as pd

        return pd.DataFrame(self._records)

    def memory(self) -> dict[str, Any]:
        """All records, and the window that is still open."""
        return {"records": self._records, "sums": self._sums, "counts": self._counts}

    def remember(self, memory: dict[str, Any]) -> None:
        """Go on from what :meth:`memory` returned."""
        self._records = list(memory["records"])
        self._sums, self._counts = dict(memory["sums"]), dict(memory["counts"])
