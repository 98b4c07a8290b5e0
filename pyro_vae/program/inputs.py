"""What users pass as data: a ``Data``, a tensor, an array or a dict, on the program's terms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.program.calling import require_program
from pyro_vae.program.rows import Rows, num_rows


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


def any_parameter(program: nn.Module) -> Tensor:
    """Any parameter, for its device and precision (a program may create its first one later)."""
    return next(program.parameters(), torch.zeros(()))


def like_parameters(rows: Rows, program: nn.Module) -> Rows:
    """On the program's device; real numbers in its precision, whole numbers as they are.

    Pixels (bytes and booleans) of the observed x are real numbers; of covariates they are labels.
    """
    parameter = any_parameter(program)

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
    rows = like_parameters(rows, program)
    if num_rows(rows) == 0:
        raise ValueError("data has no rows, expected at least one")
    for name, value in (rows if isinstance(rows, dict) else {"x": rows}).items():
        if finite and value.is_floating_point() and not value.isfinite().all():
            row = int((~value.reshape(num_rows(rows), -1).isfinite()).any(1).nonzero()[0])
            raise ValueError(
                f'data "{name}" has a value that is not finite in row {row}: remove or impute it'
            )
    return rows
