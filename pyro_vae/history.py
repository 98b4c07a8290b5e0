"""What a run leaves behind: columns over time, and a manifest of what made them."""

from __future__ import annotations

import hashlib
import inspect
import platform
from typing import Any

import torch
from torch import nn

from pyro_vae.progress import Record


class History:
    """Collects per-step means and averages them from one record to the next."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._records: list[dict[str, float]] = []

    def add(self, means: dict[str, float]) -> None:
        """Take in the batch means of one step."""
        for name, value in means.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

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


def manifest_of(program: nn.Module, x: Any, **settings: Any) -> dict[str, Any]:
    """Everything that a number depends on: plain values, ready for JSON."""
    from importlib.metadata import version

    parameter = next(program.parameters())
    return {
        "program": type(program).__name__,
        "source_digest": source_digest(program),
        "parameters": sum(p.numel() for p in program.parameters()),
        "data_digest": getattr(x, "digest", None),
        "binarize": getattr(x, "binarize", None),
        "num_data": len(x["x"] if isinstance(x, dict) else x),
        **settings,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pyro-ppl": version("pyro-ppl"),
        },
    }


def source_digest(program: nn.Module) -> str | None:
    """sha256 of the program's class as written, None where its source is not to be had."""
    try:
        return hashlib.sha256(inspect.getsource(type(program)).encode()).hexdigest()
    except (OSError, TypeError):
        return None
