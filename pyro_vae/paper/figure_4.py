r"""Figure 4: the manifolds that two latents span, Frey Face and MNIST.

Decoder means at :math:`z = \Phi^{-1}(u)`, u on a regular grid of the unit square, so that each
image stands for an equal share of the prior.

Source: Kingma & Welling (2014), figure 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.paper import images
from pyro_vae.paper.drawing import NAMES
from pyro_vae.paper.figure_2 import Curve
from pyro_vae.paper.reproduction import Reproduction, Style, chosen, whole_budget
from pyro_vae.paper.shelf import Shelf

NAME = "figure4"
BUDGET = 200_000
FULL = 100_000_000
GRIDS = {"frey_face": 10, "mnist": 20}  # images a side, as in the paper


def grid(side: int) -> Tensor:
    r""":math:`\Phi^{-1}` of the middles of side x side equal squares, row by row from the top."""
    u = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    down, right = torch.meshgrid(u.flip(0), u, indexing="ij")
    return torch.special.ndtri(torch.stack([right, down], -1).reshape(-1, 2))


def reproduce(
    *,
    budget: float = BUDGET,
    out: str | Path = f"reproduction/{NAME}",
    data_dir: str | Path | None = None,
    device: str | None = None,
    only: Sequence[str] | str | None = None,
    runs: str | Path | None = None,
    progress: Any = None,
) -> Reproduction:
    """Train AEVB with two latents on both data sets and decode the unit square.

    Args:
        budget, out, data_dir, device, runs, progress: as of ``figure_2.reproduce``, with whose
            trainings these may be shared.
        only: "mnist" or "frey_face".
    """
    budget = whole_budget(budget, 1000)
    shelf = Shelf(out, runs=runs, progress=progress, device=device)
    walls = [
        images.decoded(
            shelf, Curve(data, 2, "AEVB"), grid(GRIDS[data]), GRIDS[data],
            budget=budget, data_dir=data_dir,
        )
        for data in chosen(list(GRIDS), only)
    ]  # fmt: skip
    result = Reproduction(NAME, {"name": NAME, "budget": budget, "walls": walls}, STYLE, shelf.out)
    result.save()
    return result


def draw(numbers: Mapping[str, Any]) -> dict[str, Any]:
    from pyro_vae.plotting.figures import new_figure

    found = numbers["walls"]
    figure, axes = new_figure(len(found), width=4.8, height=5.2)
    for axis, each in zip(axes[0], found, strict=True):
        images.show_wall(axis, each)
        axis.set_title(
            f"{NAMES[each['data']]}: $z = \\Phi^{{-1}}(u)$, {each['samples']:,} samples",
            fontsize=10,
        )
        axis.set_xlabel("$u_1$")
        axis.set_ylabel("$u_2$")
    return {NAME: figure}


STYLE = Style(images.table, draw)
