"""Evidence of many rows over a cluster: every piece of rows is a cell of a sweep."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.cluster import sweep
from pyro_vae.densities.look import Look
from pyro_vae.evidence.weights import Evidence
from pyro_vae.noise import Stream, seed_of
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import Rows, map_rows, num_rows

PIECE = 500  # rows, or the next multiple of a batch


def spread(
    estimate: Callable[..., Evidence],
    program: nn.Module,
    rows: Rows,
    options: Any,
    truth: Mapping[str, Tensor] | None,
    advance: Callable[[int], Any],
    cluster: Any,
) -> Evidence:
    """What ``estimate`` says of all rows, from pieces that are estimated by workers.

    Args:
        estimate: ``estimate(program, rows, look, options, truth, advance)``.
        options: a named tuple with ``seed`` and ``batch_size``; each piece gets a seed of its own.
    """
    total = num_rows(rows)
    size = options.batch_size * -(-PIECE // options.batch_size)
    cells = {}
    for number, start in enumerate(range(0, total, size)):
        piece = slice(start, start + size)
        known = (
            None
            if truth is None
            else {n: torch.as_tensor(v)[piece].cpu() for n, v in truth.items()}
        )
        seed = seed_of(*Stream.SHARES.key(options.seed, number)) >> 1
        rows_of_it = map_rows(partial(_part, piece=piece), rows)
        cells[f"{start}"] = (rows_of_it, options._replace(seed=seed), known)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        shared = (estimate, program)
        for name, columns in sweep(_estimated, cells, out=folder, cluster=cluster, shared=shared):
            found[int(name)] = columns
            advance(len(columns["value"]))
    whole: dict[str, Any] = {
        name: torch.as_tensor(np.concatenate([found[start][name] for start in sorted(found)]))
        for name in found[0]
    }
    return Evidence(**whole)


def _part(values: Tensor, piece: slice) -> Tensor:
    return values[piece].cpu()


def _estimated(
    cell: tuple[Rows, Any, Any], folder: Path, estimate: Callable[..., Evidence], program: nn.Module
) -> dict[str, np.ndarray]:
    rows, options, truth = cell
    with torch.no_grad(), evaluating(program):
        look = Look.at(program, rows)
        evidence = estimate(program, rows, look, options, truth, lambda n=1: None)
    return {name: column.cpu().numpy() for name, column in evidence.columns().items()}
