"""`StoredData`: what `Data` is, for rows that stay in a file because memory is smaller."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.datasets.data import noise
from pyro_vae.datasets.data.base import digest_header
from pyro_vae.datasets.data.checks import Binarize, check_options, check_values
from pyro_vae.program.inputs import as_tensor
from pyro_vae.program.stored import Stored, array_reader


class StoredData(Stored):
    """N rows of a file, read by number, scaled and binarized as they are read.

    It goes wherever a `Data` goes: `pv.fit` and `pv.elbo` read a minibatch at a time; what needs
    all rows at once reads them all, if they fit into memory.  Digest, draws and batches are those
    of the same rows in memory.

    Args:
        array: (N, D) or (N, ...) real numbers: a `numpy.memmap`, an array of zarr or h5py.
        binarize, scale, seed, missing: as in `from_array`.

    Raises:
        TypeError, ValueError: as `from_array`, after every row was looked at once.
    """

    labels = columns = row_names = None
    name = "x"

    def __init__(
        self,
        array: Any,
        *,
        binarize: Binarize = "none",
        scale: float | None = None,
        seed: int = 0,
        missing: bool = False,
    ) -> None:
        super().__init__(*array_reader(array, lambda part: as_tensor(part, "x")))
        self.binarize: Binarize = binarize
        self.scale, self.seed = check_options(binarize, scale, seed)
        self.missing = missing
        self.event_shape = tuple(map(int, array.shape[1:]))
        self._then = (self._prepared,)
        if len(self) == 0 or not self.event_shape:
            check_values(torch.empty(tuple(array.shape)), "none", missing)
        kind: Binarize = "none" if binarize == "none" else "dynamic"
        for start, index in self._pieces():
            check_values(self._grey(self._raw(index)), kind, missing, start)

    @property
    def dim(self) -> int:
        """Numbers per row: the product of the event shape."""
        return math.prod(self.event_shape)

    @property
    def index(self) -> Tensor:
        """Row numbers (N,) in the file, int64."""
        return torch.from_numpy(self.at(slice(None)).astype(np.int64))

    @property
    def covariates(self) -> dict[str, Tensor]:
        """None: a file of one array holds nothing beside it."""
        return {}

    @property
    def x(self) -> Tensor:
        """All rows as `Data.x` holds them, where they fit into memory."""
        return self.undrawn().rows()

    def to(self, device: torch.device | str) -> StoredData:
        """Itself: minibatches go to the program's device when they are read."""
        return self

    def __getitem__(self, key: Any) -> StoredData:
        if isinstance(key, Tensor):
            key = key.numpy(force=True)
        return self._with(index=self.at(key))

    def __repr__(self) -> str:
        shape = " x ".join(map(str, (len(self), *self.event_shape)))
        scale = "" if self.scale is None else f", scale={self.scale:g}"
        return f"StoredData({shape}, binarize={self.binarize!r}{scale}, read by rows)"

    def undrawn(self) -> StoredData:
        """The same rows before what is drawn anew in each epoch: grey."""
        return self._with(then=(lambda rows, places, _: self._still(rows, places),))

    def _with(self, *, index: np.ndarray | None = None, then: Any = None) -> StoredData:
        part: StoredData = StoredData.__new__(type(self))
        vars(part).update(vars(self))
        part._digest = None
        part._index = self._index if index is None else index
        part._then = (part._prepared,) if then is None else then
        return part

    # --- what is done to values that were read ---------------------------------------------------

    def _raw(self, index: Tensor) -> Tensor:
        return Stored(self._read, self._whole, index=self._index).batch(index, 0)

    def _grey(self, raw: Tensor) -> Tensor:
        x = raw.to(torch.float32)
        return x if self.scale is None else x / self.scale

    def _still(self, raw: Tensor, places: Tensor) -> Tensor:
        """Values as `Data.x` holds them."""
        x = self._grey(raw)
        if self.binarize == "threshold":
            return (x >= 0.5).to(torch.float32)
        if self.binarize == "static":
            return noise.bernoulli(x, places, seed=self.seed, epoch=0)
        return x

    def _prepared(self, raw: Tensor, places: Tensor, epoch: int) -> Tensor:
        x = self._still(raw, places)
        if self.binarize == "dynamic":
            return noise.bernoulli(x, places, seed=self.seed, epoch=epoch)
        return x

    def _pieces(self) -> Any:
        size = max(1, (8 << 20) // max(1, self.dim))
        for start in range(0, len(self), size):
            yield start, torch.arange(start, min(start + size, len(self)))

    @property
    def digest(self) -> str:
        """That of a `Data` of these rows; they are read for it once."""
        if self._digest is None:
            shape = (len(self), *self.event_shape)
            hashed = hashlib.sha256(digest_header(shape, self.binarize, self.seed))
            for _, x in self.undrawn().chunks():
                hashed.update(x.contiguous().numpy().reshape(-1).data)
            if self.binarize == "dynamic":
                hashed.update(self.index.numpy().data)
            self._digest = hashed.hexdigest()
        return self._digest
