"""What users pass as data: a ``Data``, a tensor, an array or a dict, on the program's terms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.noise import seed_of
from pyro_vae.program import Rows, map_rows, num_rows, require_program


def as_tensor(value: Any) -> Tensor:
    """A tensor as it is, a numpy array of numbers as a tensor."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.ndim:
        native = np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="), copy=False))
        return torch.from_numpy(native)
    raise TypeError(
        f"data is {type(value).__name__}, expected a Data, a tensor, a numpy array of numbers (N, "
        "...) or a dict of them: pv.datasets.from_array converts data frames, np.asarray lists"
    )


def _parameter(program: nn.Module) -> Tensor:
    """Any parameter, for its device and precision (a program may create its first one later)."""
    return next(program.parameters(), torch.zeros(()))


def _like_parameters(rows: Rows, program: nn.Module) -> Rows:
    """On the program's device; real numbers in its precision, whole numbers as they are.

    Pixels (bytes and booleans) of the observed x are real numbers; of covariates they are labels.
    """
    parameter = _parameter(program)

    def place(t: Tensor, observed: bool) -> Tensor:
        pixels = observed and t.dtype in (torch.uint8, torch.bool)
        real = t.is_floating_point() or pixels
        return t.to(parameter.device, parameter.dtype if real else t.dtype)

    if isinstance(rows, dict):
        return {name: place(t, name == "x") for name, t in rows.items()}
    return place(rows, True)


def as_rows(x: Any, program: nn.Module, *, finite: bool = True) -> Rows:
    """All rows as they are evaluated: of a ``Data`` with dynamic binarization those of epoch 0.

    Values that are not finite are refused, unless ``finite`` is False.
    """
    require_program(program)
    if hasattr(x, "train") and hasattr(x, "test"):
        raise TypeError(
            f"data is a whole {type(x).__name__}, expected one part of it: pass data.train or "
            "data.test"
        )
    if hasattr(x, "rows") and hasattr(x, "batch"):
        rows: Rows = x.rows()
    elif isinstance(x, dict):
        rows = {name: as_tensor(value) for name, value in x.items()}
    else:
        rows = as_tensor(x)
    rows = _like_parameters(rows, program)
    if num_rows(rows) == 0:
        raise ValueError("data has no rows, expected at least one")
    for name, value in (rows if isinstance(rows, dict) else {"x": rows}).items():
        if finite and value.is_floating_point() and not value.isfinite().all():
            row = int((~value.reshape(num_rows(rows), -1).isfinite()).any(1).nonzero()[0])
            raise ValueError(
                f'data "{name}" has a value that is not finite in row {row}: remove or impute it'
            )
    return rows


class Batches:
    """Minibatches in an order that (seed, epoch) decides, and nothing else.

    Each epoch visits every row once.  Batches have one size; the last of an epoch is filled up
    with copies of its first row, whose ``weight`` is 0.
    """

    def __init__(self, x: Any, program: nn.Module, batch_size: int, seed: int) -> None:
        self._data = x if hasattr(x, "batch") and hasattr(x, "rows") else None
        self._rows = None if self._data is not None else as_rows(x, program)
        self._program, self._seed = program, seed
        self.num_data = len(self._data) if self._data is not None else num_rows(self._rows)  # type: ignore[arg-type]
        if self.num_data == 0:
            raise ValueError("data has no rows, expected at least one")
        self.batch_size = min(batch_size, self.num_data)
        self.per_epoch = -(-self.num_data // self.batch_size)
        self._order: tuple[int, Tensor] = (0, torch.empty(0, dtype=torch.int64))
        parameter = _parameter(program)
        self._full = torch.ones(self.batch_size, dtype=parameter.dtype, device=parameter.device)

    def __call__(self, number: int) -> tuple[Tensor, Rows, Tensor, int]:
        """Batch ``number`` (0, 1, ...): row positions, rows, weight (B,), rows that count."""
        epoch, place = divmod(number, self.per_epoch)
        epoch += 1  # epoch 0 is evaluation
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_of(self._seed, epoch, 7))
            self._order = (epoch, torch.randperm(self.num_data, generator=generator))
        start = place * self.batch_size
        index = self._order[1][start : start + self.batch_size]
        count = len(index)
        weight = self._full
        if count < self.batch_size:
            index = torch.cat([index, index[:1].expand(self.batch_size - count)])
            weight = weight.clone()
            weight[count:] = 0.0
        if self._data is not None:
            batch = _like_parameters(self._data.batch(index, epoch), self._program)
        else:
            # Row after row, in a third of the time that general indexing takes.
            batch = map_rows(lambda t: t.index_select(0, index.to(t.device)), self._rows)  # type: ignore[arg-type]
        return index, batch, weight, count
