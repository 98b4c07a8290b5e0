"""Data that says what was done to it.

A log-likelihood of images means nothing until one knows how the pixels became numbers: divided
by 255 or 256, thresholded, binarized once, binarized anew at every epoch, or left grey. These
choices move the result by nats, so they travel with the pixels, and a digest names the outcome.

=============  ============================  ==================================================
`binarize`     `Data.x`                      `Data.batch(index, epoch)`
=============  ============================  ==================================================
"none"         values as given               `x[index]`
"threshold"    0/1: grey value >= 0.5        `x[index]`
"static"       0/1: drawn once               `x[index]`
"dynamic"      grey values in [0, 1]         0/1: drawn anew for every epoch, by a hash
=============  ============================  ==================================================

Epoch 0 is kept for evaluation; training counts from 1. The static draw is that of epoch 0.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.datasets.data import noise
from pyro_vae.datasets.data.checks import (
    Binarize,
    check_covariates,
    check_options,
    check_values,
    describe,
    first_names,
    integers,
)
from pyro_vae.program.inputs import require_unmasked


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """N rows, checked once, with labels, binarization and digest.

    `Data(...)` takes values that are ready to use and copies nothing; `Data.from_pixels` scales
    and binarizes, `from_array` also converts.

    Args:
        x: (N, D) or (N, ...) float32, finite; in [0, 1] unless `binarize="none"`, and 0/1 for
            "threshold" and "static".
        labels: integers (N,), kept as int64.
        binarize: see the table above.
        scale: what raw values were divided by to give grey values; a record, never applied here.
        digest: sha256 (hex) over shape, dtype, bytes and binarization, for "dynamic" also over
            seed and row numbers; computed where it is None.
        seed: of the draws of "static" and "dynamic", >= 0.
        index: row numbers (N,) in the original data, which the draws depend on: the pixels of
            a slice are those of its rows. 0..N-1 where it is None.
        columns: names of the columns of x (N, D), where a frame or a file gave any; for reading
            alone.
        covariates: what a program is given beside x, name -> (N, ...), finite; rows are then
            dicts, in which x is called `name`.
        name: of x among the entries.
        missing: NaN in x means that the number is missing, which programs such as
            `pv.VAE.build(..., missing=True)` leave out; False refuses it.
        row_names: of the rows (N,), where a frame has an index; for reading alone.

    Raises:
        TypeError: `x` is not a float32 tensor, or labels are not integers.
        ValueError: NaN or infinite values, values out of range, wrong shapes, unknown `binarize`,
            another number of columns than names.
    """

    x: Tensor
    labels: Tensor | None = None
    binarize: Binarize = "none"
    scale: float | None = None
    digest: str = None  # type: ignore[assignment]  # always a str after __post_init__
    seed: int = 0
    index: Tensor = None  # type: ignore[assignment]  # always a Tensor after __post_init__
    columns: tuple[str, ...] | None = None
    covariates: dict[str, Tensor] = field(default_factory=dict)
    name: str = "x"
    missing: bool = False
    row_names: np.ndarray | None = None

    def __post_init__(self) -> None:
        scale, seed = check_options(self.binarize, self.scale, self.seed)
        self._set("scale", scale)
        self._set("seed", seed)
        if not isinstance(self.x, Tensor) or self.x.dtype != torch.float32:
            raise TypeError(
                f"x: got {describe(self.x)}, expected a float32 tensor; from_array(x) converts"
            )
        require_unmasked(self.x, "x")
        check_values(self.x, self.binarize, self.missing)
        if self.columns is not None and (len(self.columns),) != self.x.shape[1:]:
            raise ValueError(
                f"columns: got {len(self.columns)} names for rows of shape "
                f"{tuple(self.x.shape[1:])}, expected one for each column of x (N, D)"
            )
        self._set("x", self.x.detach())
        if self.labels is not None:
            self._set("labels", integers(self.labels, "labels", self.x))
        check_covariates(self.covariates, self.name, self.x)
        placed = {n: t.detach().to(self.x.device) for n, t in self.covariates.items()}
        self._set("covariates", placed)
        if self.row_names is not None and np.shape(self.row_names) != (len(self.x),):
            raise ValueError(
                f"row_names: got shape {np.shape(self.row_names)}, expected ({len(self.x)},), one "
                "for each row of x"
            )
        rows = torch.arange(len(self.x)) if self.index is None else self.index
        self._set("index", integers(rows, "index", self.x))
        self._set("digest", self.digest or self._compute_digest())

    @classmethod
    def from_pixels(
        cls,
        pixels: Tensor,
        labels: Tensor | None = None,
        *,
        binarize: Binarize = "threshold",
        scale: float | None = None,
        seed: int = 0,
        index: Tensor | None = None,
        columns: tuple[str, ...] | None = None,
        covariates: Mapping[str, Tensor] | None = None,
        name: str = "x",
        missing: bool = False,
        row_names: np.ndarray | None = None,
        in_place: bool = False,
    ) -> "Data":
        """Divide raw values by `scale`, binarize them, and keep a record of both.

        Args:
            pixels: (N, ...) of any real dtype, in [0, scale] ([0, 1] without a scale) unless
                `binarize="none"`. Never changed: the result has memory of its own.
            in_place: they may be changed, and their memory be that of the result.
            labels, binarize, scale, seed, index, columns, covariates, name, missing, row_names: as
                in `Data`.

        Raises:
            TypeError, ValueError: as `Data`.
        """
        scale, seed = check_options(binarize, scale, seed)
        if not isinstance(pixels, Tensor) or pixels.is_complex() or pixels.layout != torch.strided:
            raise TypeError(f"pixels: got {describe(pixels)}, expected a dense tensor of reals")
        require_unmasked(pixels, "pixels")
        x = pixels.detach().to(torch.float32, copy=not in_place)
        if scale is not None:
            x /= scale
        check_values(x, "none" if binarize == "none" else "dynamic", missing)
        if binarize == "threshold":
            x = (x >= 0.5).to(torch.float32)
        elif binarize == "static":
            rows = torch.arange(len(x)) if index is None else index
            x = noise.bernoulli(x, integers(rows, "index", x), seed=seed, epoch=0)
        beside = dict(covariates or {})
        own = (labels, binarize, scale, None, seed, index, columns, beside, name, missing)
        return cls(x, *own, row_names)  # type: ignore[arg-type]

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of a row."""
        return tuple(self.x.shape[1:])

    @property
    def dim(self) -> int:
        """Numbers per row: the product of the event shape."""
        return math.prod(self.event_shape)

    def batch(self, index: Tensor, epoch: int) -> Tensor | dict[str, Tensor]:
        """The rows at positions `index` (B,) as seen in `epoch`: a tensor (B, ...), or a dict.

        Args:
            index: int64 positions 0..len-1 in this `Data`, on the device of `x`.
            epoch: 0 for evaluation, 1, 2, ... in training; only "dynamic" depends on it.

        Raises:
            TypeError: `index` is not an int64 tensor (B,).
            ValueError: `epoch` is negative.
            IndexError: a position out of range.
        """
        if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.ndim != 1:
            raise TypeError(f"index: got {index!r}, expected an int64 tensor (B,) of positions")
        epoch = errors.whole("epoch", epoch, 0, why="0 in evaluation, 1, 2, ... in training")
        x = self.x.index_select(0, index)
        if self.binarize == "dynamic":
            rows = self.index.index_select(0, index)
            x = noise.bernoulli(x, rows, seed=self.seed, epoch=epoch)
        return self._entries(x, {n: t.index_select(0, index) for n, t in self.covariates.items()})

    def rows(self) -> Tensor | dict[str, Tensor]:
        """All rows as used for evaluation, (N, ...): those of epoch 0."""
        x = self.x
        if self.binarize == "dynamic":
            x = noise.bernoulli(self.x, self.index, seed=self.seed, epoch=0)
        return self._entries(x, self.covariates)

    def _entries(self, x: Tensor, covariates: dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        return {self.name: x, **covariates} if covariates or self.name != "x" else x

    def to(self, device: torch.device | str) -> "Data":
        """The same data on another device, with the same digest and the same draws."""
        return dataclasses.replace(self, x=self.x.to(device))  # the others follow x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, key: Any) -> "Data":
        """Some rows as a `Data`: a slice, integers (B,) or a boolean mask (N,)."""
        if not isinstance(key, slice):
            key = self._positions(key)
        labels = None if self.labels is None else self.labels[key]
        part = {
            "x": self.x[key],
            "labels": labels,
            "index": self.index[key],
            "digest": None,
            "covariates": {name: t[key] for name, t in self.covariates.items()},
            "row_names": None if self.row_names is None else self._names_at(key),
        }
        return dataclasses.replace(self, **part)  # type: ignore[arg-type]

    def _names_at(self, key: Any) -> np.ndarray:
        return self.row_names[key if isinstance(key, slice) else key.cpu().numpy()]  # type: ignore[index]

    def _positions(self, key: Any) -> Tensor:
        expected = "expected a slice, integers (B,) or a boolean mask (N,)"
        if isinstance(key, int):  # would drop the row dimension that everything relies on
            raise TypeError(f"got data[{key}], {expected}; for one row write data[{key}:{key + 1}]")
        if isinstance(key, (str, tuple)) or key is None:
            raise TypeError(f"got data[{key!r}], {expected}; columns are those of data.x")
        require_unmasked(key, "index")
        key = (key if isinstance(key, Tensor) else torch.tensor(np.asarray(key))).to(self.x.device)
        if key.ndim != 1 or key.is_floating_point() or key.is_complex():
            raise TypeError(f"got an index {tuple(key.shape)} of {key.dtype}, {expected}")
        if key.dtype != torch.bool:
            return key.to(torch.int64)
        if len(key) != len(self):
            raise ValueError(f"got a mask of {len(key)} for {len(self)} rows, {expected}")
        return key

    def _compute_digest(self) -> str:
        hashed = hashlib.sha256(digest_header(tuple(self.x.shape), self.binarize, self.seed))
        parts = [self.x, self.index] if self.binarize == "dynamic" else [self.x]
        for name, covariate in sorted(self.covariates.items()):
            about = f"{self.name} {name} {tuple(covariate.shape)} {covariate.dtype}"
            hashed.update(about.encode() + b"\0")
            parts.append(covariate)
        for part in parts:
            hashed.update(part.cpu().contiguous().numpy().reshape(-1).data)
        return hashed.hexdigest()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # frozen for everyone but __post_init__

    def __repr__(self) -> str:
        shape = " x ".join(str(n) for n in self.x.shape)
        scale = "" if self.scale is None else f", scale={self.scale:g}"
        labels = ", labels" if self.labels is not None else ""
        names = "" if self.columns is None else f" ({first_names(self.columns)})"
        covariates = "" if not self.covariates else f", beside {', '.join(self.covariates)}"
        how = f"binarize={self.binarize!r}{scale}{labels}{covariates}"
        return f"Data({shape}{names}, {how}, {self.digest[:12]})"


def digest_header(shape: tuple[int, ...], binarize: Binarize, seed: int) -> bytes:
    """What a digest begins with, before the bytes of x."""
    header = f"{shape} {torch.float32} {binarize}"
    if binarize == "dynamic":  # x alone does not say what will be seen
        header += f" seed {seed}"
    return header.encode() + b"\0"


@dataclass(frozen=True, eq=False, repr=False)
class DataSet:
    """Rows to train on, to choose by, and to report on.

    Args:
        name: what `load` calls it, or a name of your own.
        train, validation, test: three `Data` of one event shape, binarization and scale;
            `validation` may be None.
        image_shape: (height, width) of one row, or None where rows are no images.

    Raises:
        ValueError: the parts differ, or `image_shape` does not hold one row.
    """

    name: str
    train: Data
    validation: Data | None
    test: Data
    image_shape: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        kinds = {part: _kind(data) for part, data in self._parts().items()}
        if len(set(kinds.values())) > 1:
            raise ValueError(
                f"{self.name}: got (event shape, binarize, scale) {kinds}, expected the same in "
                "all parts; make them with the same options"
            )
        if self.image_shape is not None and math.prod(self.image_shape) != self.dim:
            raise ValueError(
                f"image_shape: got {self.image_shape}, expected height x width = {self.dim}"
            )

    @property
    def dim(self) -> int:
        """Numbers per row: the product of the event shape."""
        return self.train.dim

    @property
    def binarize(self) -> Binarize:
        """The binarization, the same for all parts."""
        return self.train.binarize

    def _parts(self) -> dict[str, Data]:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {part: data for part, data in parts.items() if data is not None}

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part} {len(data):,}" for part, data in self._parts().items())
        pixels = "" if self.image_shape is None else " ({} x {} pixels)".format(*self.image_shape)
        return f"DataSet({self.name}: {sizes}; dim {self.dim}{pixels}; binarize={self.binarize!r})"


def _kind(data: Data) -> tuple[object, ...]:
    beside = {name: tuple(t.shape[1:]) for name, t in sorted(data.covariates.items())}
    kind = data.event_shape, data.binarize, data.scale
    return (*kind, *beside.items()) if beside else kind
