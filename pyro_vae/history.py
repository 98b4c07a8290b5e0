"""What a run leaves behind: columns over time, and a manifest of what made them."""

from __future__ import annotations

import hashlib
import inspect
import platform
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.inputs import as_tensor
from pyro_vae.program import Rows
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


def manifest_of(program: nn.Module, x: Any, **settings: Any) -> dict[str, Any]:
    """Everything that a number depends on: plain values, ready for JSON."""
    from importlib.metadata import version

    parameter = next(program.parameters())
    return {
        "program": type(program).__name__,
        "source_digest": source_digest(program),
        "parameters": sum(p.numel() for p in program.parameters()),
        "data_digest": data_digest(x),
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
    """sha256 of the program as written: its class, its functions and the classes of its parts.

    Parts of torch and what has no source (typed at a prompt) are left out; None where the
    program's own class is among these.
    """
    parts = dict.fromkeys(type(module) for module in program.modules())
    own: list[Any] = [part for part in parts if not part.__module__.startswith("torch.")]
    functions = (getattr(program, name, None) for name in ("_model", "_guide"))
    found = []
    for part in [*own, *(each for each in functions if each is not None)]:
        try:
            found.append(inspect.getsource(part))
        except (OSError, TypeError):
            if part is type(program):
                return None
    return hashlib.sha256("\0".join(found).encode()).hexdigest()


def tensor_digest(name: str, value: Tensor) -> str:
    """sha256 over name, dtype, shape and bytes."""
    hashed = hashlib.sha256(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
    flat = value.detach().cpu().contiguous().reshape(-1)
    hashed.update(flat.view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def data_digest(x: Any) -> str:
    """The digest of a ``Data``; of tensors, arrays and dicts of them, sha256 as they are passed."""
    if isinstance(getattr(x, "digest", None), str):
        return x.digest
    entries = x if isinstance(x, dict) else {"x": x}
    hashed = hashlib.sha256()
    for name, value in sorted(entries.items()):
        hashed.update(tensor_digest(name, as_tensor(value)).encode())
    return hashed.hexdigest()


def form_of(x: Rows) -> dict[str, Any]:
    """dtype and shape of a row, of each entry of a dict."""
    if isinstance(x, dict):
        return {name: form_of(value) for name, value in x.items()}
    return {"dtype": str(x.dtype).removeprefix("torch."), "shape": list(x.shape[1:])}
