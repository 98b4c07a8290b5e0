"""What users pass as data: a ``Data``, a tensor, an array or a dict, on the program's terms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.program.calling import require_program
from pyro_vae.program.rows import Rows, num_rows


def as_tensor(value: Any, name: str = "data") -> Tensor:
    """A tensor as it is, a numpy array of numbers as a tensor: each array of a user comes by here.

    Args:
        value: dense real numbers, none of them masked.  A read-only array is copied.
        name: what the caller knows it by, for the message.

    Raises:
        TypeError: anything else.
    """
    require_unmasked(value, name)
    if isinstance(value, Tensor):
        if value.is_complex() or value.layout != torch.strided or value.is_nested:
            kind = f"{value.dtype}, {value.layout}" + (", nested" if value.is_nested else "")
            raise TypeError(
                f"{name} is a tensor of {kind}, expected dense real numbers: .to_dense() makes "
                "them of sparse ones, .to_padded_tensor(0.0) of nested ones"
            )
        return value
    if isinstance(value, np.ndarray) and value.ndim:
        if value.dtype.kind not in "fiub":
            raise TypeError(
                f"{name} is an array of dtype {value.dtype}, expected real numbers: convert with "
                ".astype(float)"
            )
        # torch knows no foreign byte order, no long double, no negative strides.
        dtype = np.dtype(np.float64) if value.dtype.itemsize > 8 else value.dtype
        native = np.ascontiguousarray(value.astype(dtype.newbyteorder("="), copy=False))
        return torch.from_numpy(native if native.flags.writeable else native.copy())
    raise TypeError(
        f"{name} is {type(value).__name__}, expected a Data, a tensor, a numpy array of numbers "
        "(N, ...) or a dict of them: pv.datasets.from_array converts data frames, np.asarray lists"
    )


def require_unmasked(value: Any, name: str) -> None:
    """Refuse what masks values, which a plain tensor would show as if they had been measured.

    Raises:
        TypeError: how many are masked, and the ways out.
    """
    if isinstance(value, Tensor):
        if not torch.masked.is_masked_tensor(value):
            return
        mask = ~value.get_mask().numpy(force=True)
    elif np.ma.is_masked(value):
        mask = np.ma.getmaskarray(value)
    else:
        return
    row = f", the first in row {int(np.argwhere(mask)[0][0])}" if mask.any() and mask.ndim else ""
    raise TypeError(
        f"{name} is a masked array, {int(mask.sum())} of its {mask.size} values masked{row}, "
        "expected plain values: fill them, x.filled(0), or drop their rows; to have a model leave "
        'them out, pass {"x": x.filled(0), "seen": ~x.mask}, and observe the likelihood under '
        '.mask(x["seen"])'
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
        rows = {name: as_tensor(value, f'data "{name}"') for name, value in x.items()}
    else:
        rows = as_tensor(x)
    rows = like_parameters(rows, program)
    if num_rows(rows) == 0:
        raise ValueError("data has no rows, expected at least one")
    for name, value in (rows if isinstance(rows, dict) else {"x": rows}).items():
        if finite and value.is_floating_point() and not value.isfinite().all():
            row = int((~value.reshape(num_rows(rows), -1).isfinite()).any(1).nonzero()[0])
            raise ValueError(
                f'data "{name}" has a value that is not finite in row {row}: remove or impute it, '
                'or have a model leave it out: pass {"x": x.nan_to_num(), "seen": x.isfinite()}, '
                'and observe the likelihood under .mask(x["seen"])'
            )
    return rows
