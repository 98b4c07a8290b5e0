"""Figure 5: what draws of the prior decode to, MNIST, with 2, 5, 10 and 20 latents.

Shown are decoder means, as in the paper, not draws of pixels.

Source: Kingma & Welling (2014), figure 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_vae.noise import Stream, seeded
from pyro_vae.paper import images
from pyro_vae.paper.figure_2 import Curve
from pyro_vae.paper.reproduction import Reproduction, Style, chosen, whole_budget
from pyro_vae.paper.shelf import Shelf

NAME = "figure5"
BUDGET = 200_000
FULL = 100_000_000
CURVES = [Curve("mnist", latent_dim, "AEVB") for latent_dim in (2, 5, 10, 20)]
SIDE = 10


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
    """Train AEVB and decode a hundred draws of the prior for each number of latents.

    Args:
        budget, out, data_dir, device, runs, progress: as of ``figure_2.reproduce``, with whose
            trainings these may be shared.
        only: names of curves, such as "mnist-aevb-5".
    """
    budget = whole_budget(budget, 1000)
    names = chosen([curve.name for curve in CURVES], only)
    shelf = Shelf(out, runs=runs, progress=progress, device=device)
    walls = []
    for curve in CURVES:
        if curve.name not in names:
            continue
        with seeded(*Stream.PRIOR.key(0, curve.latent_dim)):
            z = torch.randn(SIDE**2, curve.latent_dim)
        walls.append(images.decoded(shelf, curve, z, SIDE, budget=budget, data_dir=data_dir))
    result = Reproduction(NAME, {"name": NAME, "budget": budget, "walls": walls}, STYLE, shelf.out)
    result.save()
    return result


def draw(numbers: Mapping[str, Any]) -> dict[str, Any]:
    from pyro_vae.plotting.figures import new_figure

    found = numbers["walls"]
    figure, axes = new_figure(len(found), width=3.2, height=3.5)
    for axis, each in zip(axes[0], found, strict=True):
        images.show_wall(axis, each)
        axis.set_title(f"Nz = {each['latent_dim']}, {each['samples']:,} samples", fontsize=10)
    return {NAME: figure}


STYLE = Style(images.table, draw)
