"""Batches of rows, here or by workers: the same numbers, for noise goes by a batch's number."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pyro_vae.cluster import Arrays, sweep
from pyro_vae.inference_data.chains import Batch, Chain
from pyro_vae.inference_data.draws import as_array
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import Rows, map_rows, num_rows, rows_from

What = Literal["batches", "predictions"]  # the method of a chain
PIECE = 500  # rows that a worker is given, or the next multiple of a batch
PLACES = "places"  # where each array of a result belongs


def batches_of(
    chains: Sequence[Chain], what: What, x: Rows, cluster: Any
) -> Iterator[tuple[int, list[Batch]]]:
    """The number of the first row of a batch, and what each chain has for it.

    On a cluster they come in any order.
    """
    if cluster is None:
        yield from _in_turn(chains, what, x, 0)
        return
    batch = chains[0].sizes.batch_size
    size = batch * -(-PIECE // batch)
    cells = {
        str(start): (start, map_rows(torch.Tensor.cpu, rows_from(x, start, size)))
        for start in range(0, num_rows(x), size)
    }
    with tempfile.TemporaryDirectory() as folder:
        shared = (list(chains), what)
        for _, arrays in sweep(_piece, cells, out=folder, cluster=cluster, shared=shared):
            yield from _unpacked(arrays)


def _in_turn(
    chains: Sequence[Chain], what: What, x: Rows, start: int
) -> Iterator[tuple[int, list[Batch]]]:
    for batch in zip(*(getattr(chain, what)(x, start) for chain in chains), strict=True):
        yield start, list(batch)
        start += batch[0].size


# --- what workers do ------------------------------------------------------------------------------


def _piece(
    cell: tuple[int, Rows], folder: Path, chains: Sequence[Chain], what: What
) -> dict[str, np.ndarray]:
    start, rows = cell
    places: list[list[Any]] = []
    arrays: dict[str, np.ndarray] = {}

    def put(value: Any, *place: Any) -> None:
        if isinstance(value, dict):
            for name, part in value.items():
                put(part, *place, name)
        else:
            arrays[str(len(places))] = as_array(value)
            places.append([*place])

    with torch.no_grad(), ExitStack() as stack:
        for chain in chains:
            stack.enter_context(evaluating(chain.program))
        for first, batch in _in_turn(chains, what, rows, start):
            for number, each in enumerate(batch):
                put(each._asdict(), first, number)
    return arrays | {PLACES: np.array(json.dumps(places))}


def _unpacked(arrays: Arrays) -> Iterator[tuple[int, list[Batch]]]:
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for number, (first, chain, *place, name) in enumerate(json.loads(str(arrays[PLACES]))):
        part = found.setdefault(first, {}).setdefault(chain, {})
        for key in place:
            part = part.setdefault(key, {})
        part[name] = arrays[str(number)]
    for first, chains in found.items():
        yield first, [Batch(**chains[number]) for number in sorted(chains)]
