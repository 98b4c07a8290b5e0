"""Your own arrays as `Data`, and `Data` split into a `DataSet`.

What a model sees must be what the user meant, so nothing is guessed: no column of text is
dropped, no mask forgotten, no missing value filled, and a refusal names the place.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.datasets.data import noise
from pyro_vae.datasets.data.base import Data, DataSet
from pyro_vae.datasets.data.checks import Binarize
from pyro_vae.datasets.data.stored import StoredData
from pyro_vae.program.frames import column_names, how_to_read, is_frame, row_names
from pyro_vae.program.inputs import as_tensor
from pyro_vae.program.stored import is_stored, large


def from_array(
    x: Any,
    labels: Any = None,
    *,
    binarize: Binarize = "none",
    scale: float | None = None,
    seed: int = 0,
    missing: bool = False,
    in_place: bool = False,
) -> Data:
    """Turn an array, a tensor, a frame or a sparse matrix into `Data`, copying it to float32.

    An array in a file (`numpy.load(path, mmap_mode="r")`, zarr, h5py) of more than 256 MiB as
    float32 stays there, as `StoredData`, which is read by rows.

    Args:
        x: (N, D) or (N, ...) real numbers. The columns of a frame give theirs their names, and the
            index of a pandas one the rows theirs. Of a dict the entry "x", else the first one, is
            `Data.x`; the others are `Data.covariates`, real numbers as float32, whole numbers as
            they are.
        labels: integers (N,), optional; no model sees them.
        binarize: "none" keeps real values; the others need values in [0, scale].
        scale: divides `x`, such as 255.0 for bytes.
        seed: of the draws of "static" and "dynamic".
        missing: NaN means that a number is missing; a program must leave it out, such as one of
            `pv.VAE.build(..., missing=True)`.
        in_place: `x` may be changed, and its memory be that of the result.

    Raises:
        TypeError: text, objects, dates, complex numbers, masked values, float labels.
        ValueError: 1-D or empty arrays, NaN (with its place), values out of range; a sparse matrix
            that would not fit into memory.
    """
    name, covariates = "x", dict[str, Tensor]()
    if is_stored(x):
        if labels is None and large(x.shape):
            kept = StoredData(x, binarize=binarize, scale=scale, seed=seed, missing=missing)
            return kept  # type: ignore[return-value]  # which does all that a Data does
        x, in_place = np.array(x), True
    if isinstance(x, Mapping):
        name, x, covariates = _main_and_covariates(x)
    return Data.from_pixels(
        _tensor(x, name),
        None if labels is None else _tensor(labels, "labels").clone(),
        binarize=binarize,
        scale=scale,
        seed=seed,
        columns=column_names(x),
        row_names=row_names(x),
        covariates=covariates,
        name=name,
        missing=missing,
        in_place=in_place,
    )


def _main_and_covariates(entries: Mapping[str, Any]) -> tuple[str, Any, dict[str, Tensor]]:
    """The name and the values of what is observed, and what is given beside it."""
    if not entries:
        raise ValueError('x: got a dict without entries, expected one "x" at least')
    for name, value in entries.items():
        plain = value is None or isinstance(value, str | int | float | complex)
        if not isinstance(name, str) or plain or getattr(value, "shape", (0,)) == ():
            got = "None" if value is None else f"one {type(value).__name__}"
            raise TypeError(
                f"x: got {got} as entry {name!r}, expected an array with a row for each datum: "
                "leave it out, or give what is the same for all data to the program"
            )
    main = "x" if "x" in entries else next(iter(entries))
    rest = {n: _tensor(v, n).detach().clone() for n, v in entries.items() if n != main}
    if main != "x" and rest and _tensor(entries[main], main).dtype in _WHOLE:
        raise TypeError(
            f'x: got no entry "x", and the first one, {main!r}, holds whole numbers, expected real '
            'numbers (N, ...) of what is observed: put that first, or call it "x"; counts that '
            "are observed are given as .astype(float)"
        )
    real = {n: t.float() if t.is_floating_point() else t for n, t in rest.items()}
    return main, entries[main], real


_WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64)


def split(
    data: Data | StoredData | Mapping[str, Any],
    *,
    test: float = 0.1,
    validation: float = 0.0,
    seed: int = 0,
    name: str = "data",
    image_shape: tuple[int, int] | None = None,
) -> DataSet:
    """Split the rows at random into training, validation and test data.

    Each part is in random order, so that its first rows are a fair sample of it; of rows that stay
    in a file (`StoredData`) in the order of the file, in which they are read fastest.

    Args:
        data: a `Data` of at least two rows, or a dict that `from_array` makes one of.
        test, validation: a share below 1, or a number of rows; no validation data where 0.
        seed: of the order; the same rows for every version and device.
        name, image_shape: of the `DataSet`; a 2-D event is taken for an image.

    Raises:
        TypeError: `data` is neither a `Data` nor a dict.
        ValueError: no row would be left for training or testing.
    """
    if isinstance(data, Mapping):
        data = from_array(data)
    if not isinstance(data, Data | StoredData):
        raise TypeError(
            f"data: got {type(data).__name__}, expected Data, split(from_array(x)), or a dict"
        )
    size, seed = len(data), errors.whole("seed", seed, 0, 2**63 - 1)
    num_test, num_validation = _rows(test, size, "test"), _rows(validation, size, "validation")
    if num_test < 1 or num_test + num_validation >= size or (validation and not num_validation):
        raise ValueError(
            f"got {num_test} rows for test and {num_validation} for validation of {size}, expected "
            "at least one row in each part and in train; change test= or validation="
        )
    held_out = num_test + num_validation
    if image_shape is None and len(data.event_shape) == 2:
        image_shape = data.event_shape
    if isinstance(data, StoredData):
        test_rows, kept = _in_order(size, num_test, held_out, seed)
        return DataSet(
            name,
            train=data[~kept],  # type: ignore[arg-type]  # which does all that a Data does
            validation=data[kept & ~test_rows] if num_validation else None,  # type: ignore[arg-type]
            test=data[test_rows],  # type: ignore[arg-type]
            image_shape=image_shape,
        )
    order = noise.permutation(size, seed=seed).to(data.x.device)
    return DataSet(
        name,
        train=data[order[held_out:]],
        validation=data[order[num_test:held_out]] if num_validation else None,
        test=data[order[:num_test]],
        image_shape=image_shape,
    )


def _in_order(size: int, num_test: int, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are for testing, and which are held out, as masks: the same rows as in memory."""
    masks = []
    for count in (num_test, held_out):
        mask = np.zeros(size, dtype=bool)
        mask[noise.first_of_permutation(size, count, seed=seed).numpy()] = True
        masks.append(mask)
    return masks[0], masks[1]


def _rows(share: float, size: int, name: str) -> int:
    why = "a share below 1, or a number of rows"
    share = errors.within(name, share, "[0, inf)", why)
    return round(share * size) if share < 1 else errors.whole(name, share, why=why)


def _tensor(values: Any, name: str) -> Tensor:
    """A dense real tensor; `Data` checks shape and values."""
    if not (isinstance(values, (Tensor, np.ndarray)) or is_frame(values)):
        raise TypeError(
            f"{name}: got {type(values).__name__}, expected a numpy array, a torch tensor, a frame "
            f"or a sparse matrix of SciPy, or a dict of them for several; {how_to_read(values)}"
        )
    return as_tensor(values, name)
