"""Your own arrays as `Data`, and `Data` split into a `DataSet`.

What a model sees must be what the user meant, so nothing is guessed: no column of text is
dropped, no mask forgotten, no missing value filled, and a refusal names the place.
"""

from typing import Any

import numpy as np
from torch import Tensor

from pyro_vae import errors
from pyro_vae.datasets.data import noise
from pyro_vae.datasets.data.base import Data, DataSet
from pyro_vae.datasets.data.checks import Binarize
from pyro_vae.program.inputs import as_tensor


def from_array(
    x: Any,
    labels: Any = None,
    *,
    binarize: Binarize = "none",
    scale: float | None = None,
    seed: int = 0,
) -> Data:
    """Turn a numpy array, a torch tensor or a pandas frame into `Data`, copying it to float32.

    Args:
        x: (N, D) or (N, ...) real numbers. The columns of a frame give theirs their names.
        labels: integers (N,), optional.
        binarize: "none" keeps real values; the others need values in [0, scale].
        scale: divides `x`, such as 255.0 for bytes.
        seed: of the draws of "static" and "dynamic".

    Raises:
        TypeError: text, objects, complex numbers, sparse arrays, masked values, float labels.
        ValueError: 1-D or empty arrays, NaN (with its place), values out of range.
    """
    names = getattr(x, "columns", None)
    if names is not None and list(names) == list(range(len(names))):
        names = None  # pandas counts columns that were given none
    return Data.from_pixels(
        _tensor(x, "x"),
        None if labels is None else _tensor(labels, "labels").clone(),
        binarize=binarize,
        scale=scale,
        seed=seed,
        columns=None if names is None else tuple(map(str, names)),
    )


def split(
    data: Data,
    *,
    test: float = 0.1,
    validation: float = 0.0,
    seed: int = 0,
    name: str = "data",
    image_shape: tuple[int, int] | None = None,
) -> DataSet:
    """Split the rows at random into training, validation and test data.

    Each part is in random order, so that its first rows are a fair sample of it.

    Args:
        data: at least two rows.
        test, validation: a share below 1, or a number of rows; no validation data where 0.
        seed: of the order; the same rows for every version and device.
        name, image_shape: of the `DataSet`; a 2-D event is taken for an image.

    Raises:
        TypeError: `data` is not a `Data`.
        ValueError: no row would be left for training or testing.
    """
    if not isinstance(data, Data):
        raise TypeError(f"data: got {type(data).__name__}, expected Data; see from_array")
    size, seed = len(data), errors.whole("seed", seed, 0, 2**63 - 1)
    num_test, num_validation = _rows(test, size, "test"), _rows(validation, size, "validation")
    if num_test < 1 or num_test + num_validation >= size or (validation and not num_validation):
        raise ValueError(
            f"got {num_test} rows for test and {num_validation} for validation of {size}, expected "
            "at least one row in each part and in train; change test= or validation="
        )
    order = noise.permutation(size, seed=seed).to(data.x.device)
    held_out = num_test + num_validation
    if image_shape is None and data.x.ndim == 3:
        image_shape = (data.x.shape[1], data.x.shape[2])
    return DataSet(
        name,
        train=data[order[held_out:]],
        validation=data[order[num_test:held_out]] if num_validation else None,
        test=data[order[:num_test]],
        image_shape=image_shape,
    )


def _rows(share: float, size: int, name: str) -> int:
    why = "a share below 1, or a number of rows"
    share = errors.within(name, share, "[0, inf)", why)
    return round(share * size) if share < 1 else errors.whole(name, share, why=why)


def _tensor(values: Any, name: str) -> Tensor:
    """A dense real tensor; `Data` checks shape and values."""
    if hasattr(values, "to_numpy"):  # a pandas frame or series, without importing pandas
        values = _from_pandas(values, name)
    if not isinstance(values, (Tensor, np.ndarray)):
        raise TypeError(
            f"{name}: got {type(values).__name__}, expected a numpy array, a torch tensor or a "
            "pandas frame; np.asarray(...) makes one of nested lists, .toarray() of a sparse one"
        )
    return as_tensor(values, name)


def _from_pandas(values: Any, name: str) -> Any:
    """The array of a frame, a series or the like; missing values are NaN, which `Data` refuses."""
    is_frame = hasattr(values, "columns") and hasattr(values, "items")
    columns = list(values.items()) if is_frame else [(None, values)]
    kinds = [getattr(getattr(each, "dtype", None), "kind", None) for _, each in columns]
    for (column, series), kind in zip(columns, kinds, strict=True):
        if kind is not None and kind not in "biuf":
            where = f"column {column!r}" if is_frame else "values"
            others = (each for each in enumerate(series) if not _is_number(each[1]))
            row, value = next(others, (0, None))
            raise TypeError(
                f"{name}: got {where} of dtype {series.dtype} ({value!r} in row {row}), expected "
                "numbers; drop the column or encode it"
            )
    array = values.to_numpy()
    if array.dtype == object and None not in kinds:  # nullable columns, or of mixed types
        return values.to_numpy(dtype=np.float64, na_value=np.nan)
    return array


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
