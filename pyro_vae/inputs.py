"""What users pass as data: a ``Data``, a tensor, an array or a dict, on the program's terms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.lifting import seed_of
from pyro_vae.program import Rows, map_rows, num_rows


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    raise TypeError(
        f"data is {type(value).__name__}, expected a Data, a tensor, a numpy array or a dict of "
        "them: pv.datasets.from_array converts data frames"
    )


def _parameter(program: nn.Module) -> Tensor:
    """Any parameter, for its device and precision (a program may create its first one later)."""
    return next(program.parameters(), torch.zeros(()))


def _like_parameters(rows: Rows, program: nn.Module) -> Rows:
    """On the program's device; real numbers in its precision, whole numbers as they are."""
    parameter = _parameter(program)

    def place(t: Tensor) -> Tensor:
        real = t.is_floating_point() or t.dtype in (torch.uint8, torch.bool)
        return t.to(parameter.device, parameter.dtype if real else t.dtype)

    return map_rows(place, rows)


def as_rows(x: Any, program: nn.Module) -> Rows:
    """All rows as they are evaluated: of a ``Data`` with dynamic binarization those of epoch 0."""
    if hasattr(x, "rows") and hasattr(x, "batch"):
        rows: Rows = x.rows()
    elif isinstance(x, dict):
        rows = {name: _tensor(value) for name, value in x.items()}
    else:
        rows = _tensor(x)
    rows = _like_parameters(rows, program)
    if num_rows(rows) == 0:
        raise ValueError("data has no rows, expected at least one")
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
        if count < self.batch_size:
            index = torch.cat([index, index[:1].expand(self.batch_size - count)])
        if self._data is not None:
            batch = _like_parameters(self._data.batch(index, epoch), self._program)
        else:
            batch = map_rows(lambda t: t[index.to(t.device)], self._rows)  # type: ignore[arg-type]
        parameter = _parameter(self._program)
        weight = torch.ones(self.batch_size, dtype=parameter.dtype, device=parameter.device)
        weight[count:] = 0.0
        return index, batch, weight, count
