"""What may become data: the checks of `Data`, each of which says what to do instead.

They raise exceptions rather than assert, and run once, where data enters: 255 fed to a Bernoulli
likelihood *improves* its loss, and under `python -O` or in a captured graph nobody would object.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.program.inputs import require_unmasked

Binarize = Literal["none", "threshold", "static", "dynamic"]


def check_options(binarize: str, scale: float | None, seed: int) -> tuple[float | None, int]:
    """Scale and seed as numbers; refuses options that no data could go with."""
    if binarize not in get_args(Binarize):
        known = ", ".join(repr(kind) for kind in get_args(Binarize))
        raise ValueError(f"binarize: got {binarize!r}, expected one of {known}")
    if scale is not None:
        scale = errors.positive("scale", scale, "a divisor such as 255, or None")
    return scale, errors.whole("seed", seed, 0, 2**63 - 1)


def check_values(x: Tensor, binarize: Binarize, missing: bool = False, first_row: int = 0) -> None:
    """Refuse what is not (N, ...), empty, not finite, or not what `binarize` allows.

    With `missing`, NaN is a value that nobody knows, and infinite ones are still refused.  Rows
    count from `first_row`.
    """
    shape = tuple(x.shape)
    if x.ndim < 2:
        raise ValueError(
            f"x: got shape {shape}, expected (N, D) or (N, ...); for one number per row pass "
            "x.reshape(-1, 1), for one row x.reshape(1, -1)"
        )
    if x.numel() == 0:
        raise ValueError(f"x: got shape {shape}, which is empty, expected at least one value")
    if missing:
        if binarize != "none":
            raise ValueError(
                f'missing=True beside binarize={binarize!r}, expected "none": binarize first, '
                "np.where(np.isnan(x), x, x > 0.5)"
            )
        x = x.nan_to_num(0.0, torch.inf, -torch.inf)
    low, high = (value.item() for value in torch.aminmax(x))  # either is NaN if any value is
    if not (math.isfinite(low) and math.isfinite(high)):
        position = (~torch.isfinite(x)).nonzero()[0].tolist()
        where = f"row {first_row + position[0]}, column {', '.join(map(str, position[1:]))}"
        value = x[tuple(position)].item()
        raise ValueError(
            f"x: got {value} at {where} (counted from 0), expected finite float32 values; drop "
            "or impute such rows first"
            + (", or pass missing=True where NaN means missing" if math.isnan(value) else "")
        )
    if binarize == "none":
        return
    if low < 0 or high > 1:
        raise ValueError(_out_of_range(low, high, binarize))
    if binarize != "dynamic" and not bool(((x == 0) | (x == 1)).all()):
        raise ValueError(
            f"x: got values between 0 and 1 with binarize={binarize!r}, expected 0/1 values; "
            f"Data.from_pixels(x, binarize={binarize!r}) makes them"
        )


def check_covariates(covariates: Mapping[str, Tensor], name: str, x: Tensor) -> None:
    """Refuse what has not a row for each of `x`, is not finite, or has its name."""
    for other, t in covariates.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{other}: got {describe(t)}, expected a tensor; from_array converts")
        require_unmasked(t, other)
        if other == name:
            raise ValueError(f'covariates: got "{name}", which is what x is called: rename it')
        if t.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"{other}: got shape {tuple(t.shape)}, expected ({len(x)}, ...), a row for each of "
                f"{name}"
            )
        if t.is_floating_point() and not t.isfinite().all():
            row = int((~t.isfinite()).nonzero()[0, 0])
            raise ValueError(
                f"{other}: got a value that is not finite in row {row} (counted from 0); drop or "
                "impute such rows first"
            )


def _out_of_range(low: float, high: float, binarize: str) -> str:
    if low < 0:
        return (
            f'x: got min {low}, expected values in [0, 1] to binarize; pass binarize="none" for '
            "real values, or shift them first"
        )
    divisor = 16 if high <= 16 else 255 if high <= 255 else round(high)
    return (
        f"x: got max {high}, expected values in [0, 1] to binarize: divide by {divisor} or pass "
        f'scale={divisor} to from_array or Data.from_pixels; binarize="none" keeps real values'
    )


def integers(values: Tensor, name: str, x: Tensor) -> Tensor:
    """One int64 per row of `x`, on its device."""
    if isinstance(values, Tensor):
        require_unmasked(values, name)
        if values.is_floating_point() and values.isnan().any():
            raise ValueError(
                f"{name}: got none for row {int(values.isnan().nonzero()[0, 0])} (counted from 0), "
                "expected an integer for each row of x; drop such rows first"
            )
    if (
        not isinstance(values, Tensor)
        or values.dtype == torch.bool
        or values.is_floating_point()
        or values.is_complex()
    ):
        raise TypeError(f"{name}: got {describe(values)}, expected an integer tensor (N,)")
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"{name}: got shape {tuple(values.shape)}, expected ({len(x)},), one for each row of x"
        )
    return values.to(device=x.device, dtype=torch.int64)


def first_names(names: Sequence[str], most: int = 3) -> str:
    """The first few names, for a line that a user reads."""
    shown = ", ".join(names[:most])
    return f"{shown}, ..." if len(names) > most else shown


def describe(values: object) -> str:
    """Type and dtype, for an error."""
    dtype = getattr(values, "dtype", None)
    return type(values).__name__ + ("" if dtype is None else f" of {dtype}")
