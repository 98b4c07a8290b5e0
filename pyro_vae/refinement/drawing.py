"""Draws of a guide by site with the rows in front, and their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.densities.particles import densities
from pyro_vae.densities.sites import Site, Sites, latents_of
from pyro_vae.evaluation import RowFunction, event_size, row_chunks
from pyro_vae.noise import Stream
from pyro_vae.program.rows import Rows, num_rows

AT_ONCE = 100
FEWEST = 8

Table = dict[str, Tensor]  # by site, (K, B, ...)


def model_latents(guide: Sites, model: Sites) -> Sites:
    """The guide's latents that the model has too, as sites of the guide."""
    return {name: site for name, site in latents_of(guide).items() if name in model}


def table_size(x: Rows, num_draws: int, batch_size: int, max_elements: int) -> int:
    """How many draws of a batch are made at a time: all chunks alike, so that they are one graph.

    Not all at once: a program that takes no repeated rows runs once a draw until it is a graph.
    """
    fitting = max(1, min(num_draws, AT_ONCE, max_elements // (event_size(x) * batch_size)))
    return -(-num_draws // -(-num_draws // fitting))


def rows_at_once(x: Rows, batch_size: int | None, max_elements: int) -> int:
    """How many rows of a batch: those that are asked for, or as many as leave room for draws."""
    return min(batch_size or max(1, max_elements // (event_size(x) * FEWEST)), num_rows(x))


def drawn(size: int, sites: Sites) -> Callable[[Any, Rows], tuple[Table, Tensor]]:
    """``size`` draws of the guide and their log weights."""

    def draw(program: nn.Module, rows: Rows) -> tuple[Table, Tensor]:
        d = densities(program, rows, size, reparameterize=False)
        return {name: rows_second(site, d.latents[name]) for name, site in sites.items()}, d.log_w

    return draw


def rows_second(site: Site, values: Tensor) -> Tensor:
    """Draws (S, ...) of a site with the rows behind the draws: (S, B, ...)."""
    if site.axis is None:
        return values
    return values.movedim(site.axis - len(site.event_shape), 1)


def joined(tables: list[Table], num_draws: int) -> Table:
    """Of several tables the first S draws."""
    return {name: torch.cat([t[name] for t in tables])[:num_draws] for name in tables[0]}


def all_draws(
    program: nn.Module,
    x: Rows,
    sites: Sites,
    *,
    num_draws: int,
    seed: int,
    batch_size: int | None,
    max_elements: int,
) -> Table:
    """S draws of the guide for each datum."""
    batch_size = rows_at_once(x, batch_size, max_elements)
    size = table_size(x, num_draws, batch_size, max_elements)
    function, parts = RowFunction(program, drawn(size, sites)), []
    for number, (count, rows) in enumerate(row_chunks(x, batch_size)):
        keys = (Stream.REFINED.key(seed, number, part) for part in range(-(-num_draws // size)))
        table = joined([function(rows, *key)[0] for key in keys], num_draws)
        parts.append({name: value[:, :count] for name, value in table.items()})
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}
