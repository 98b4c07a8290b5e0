r"""The picture of README.md: ``python docs/picture.py`` (a minute or two).

Left, what AEVB has learnt: the decoder's images over the unit square, at
:math:`z = \Phi^{-1}(u)`, where every equal area of the prior gets an equal share of the picture
(Kingma & Welling (2014), figure 4).  Middle and right, held-out log p(x) of the paper's three
algorithms while they learn, and at the end; two latent dimensions are few enough for quadrature.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import xarray as xr
from PIL import Image

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae
from pyro_vae.plotting.comparison import bound_axis, evidence_axis
from pyro_vae.plotting.figures import new_figure, saved

OBJECTIVES = {
    "AEVB": pv.objectives.AEVB(),
    "wake-sleep": pv.objectives.WakeSleep(),
    "Monte Carlo EM": pv.objectives.MonteCarloEM(),
}
MARKS = np.array([12.5, 15, 20, 30, 45, 70, 100, 150, 225, 300]) * 1_000  # training samples
TILES, SCALE, VOTES = 13, 8, 15  # images a side, pixels for a pixel, digits that vote on a colour


def log_evidence(vae: Any, x: torch.Tensor) -> np.ndarray:
    """log p(x) by the trapezoidal rule over z, (B,): what is left out is below 1e-5 nats."""
    line = torch.linspace(-6, 6, 201)
    z = torch.cartesian_prod(line, line)
    with torch.no_grad():
        logits = vae.likelihood(z).base_dist.logits  # (Z, D)
        log_p = x @ logits.T - torch.nn.functional.softplus(logits).sum(1) + vae.prior().log_prob(z)
    return (log_p.double().logsumexp(1) + 2 * (line[1] - line[0]).log()).numpy()


def train(digits: pv.datasets.DataSet, objective: Any, seed: int, marks: np.ndarray) -> Any:
    """A program, and log p(x) of the test digits each time a mark is passed, (marks, datum)."""
    torch.manual_seed(seed)
    vae = bernoulli_vae.build(digits.dim, latent_dim=2, hidden_dim=128, init_std=None)
    scores: list[np.ndarray] = []

    def score(record: Any) -> None:
        if len(scores) < len(marks) and record.samples >= marks[len(scores)]:
            scores.append(log_evidence(vae, digits.test.rows()))

    pv.fit(
        vae, digits.train, objective, samples=int(marks[-1]), optimizer=pv.optimizers.Adagrad,
        lr=0.02, seed=seed, callbacks=[score], progress=False,
    )  # fmt: skip
    return vae, np.stack(scores)


def manifold_axis(axis: Any, vae: torch.nn.Module, digits: pv.datasets.DataSet) -> None:
    """The decoder's images over the unit square, in the colour of most training digits around."""
    u = (torch.arange(TILES) + 0.5) / TILES
    z = torch.special.ndtri(torch.cartesian_prod(u, u))
    codes = pv.encode(vae, digits.train)
    distance = torch.cdist(torch.special.ndtr(z), torch.special.ndtr(codes))
    around = distance.topk(VOTES, largest=False).indices  # (tiles, votes)
    labels = torch.as_tensor(digits.train.labels)[around].mode(1).values
    with torch.no_grad():
        ink = vae.likelihood(z).mean.view(-1, 1, 8, 8)
    ink = torch.nn.functional.pad(ink, (1, 1, 1, 1))  # digits touch the edge of their 8 x 8
    ink = torch.nn.functional.interpolate(ink, scale_factor=SCALE, mode="bicubic").clamp(0, 1)
    palette = torch.tensor(matplotlib.colormaps["tab10"].colors)
    colours = palette[labels][:, :, None, None]  # (tiles, 3, 1, 1)
    tiles = 1 - ink * (1 - colours)
    side = 10 * SCALE
    # u runs to the right and upwards, the rows of a picture downwards.
    wall = tiles.view(TILES, TILES, 3, side, side).flip(1).permute(1, 3, 0, 4, 2)
    axis.imshow(wall.reshape(TILES * side, TILES * side, 3), extent=(0, 1, 0, 1))
    axis.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], xlabel="$u_1$", ylabel="$u_2$")
    axis.set_title(r"AEVB: what it draws at $z = \Phi^{-1}(u)$", fontsize=9, loc="right")
    axis.grid(False)


def measured(digits: pv.datasets.DataSet, seeds: int, marks: np.ndarray) -> tuple[Any, xr.Dataset]:
    """AEVB's program of the first seed, and log p(x) in the form of a comparison's data set."""
    found = {}
    for name, objective in OBJECTIVES.items():
        for seed in range(seeds):
            found[name, seed] = train(digits, objective, seed, marks)
            final = found[name, seed][1][-1].mean()
            print(f"{name}, seed {seed}: log p(x) {final:.2f} nats per test digit", flush=True)
    scores = np.stack([score for _, score in found.values()])
    # (model, objective, seed, mark, datum)
    scores = scores.reshape(1, len(OBJECTIVES), seeds, *scores.shape[1:])
    dims = ("model", "objective", "seed")
    samples = np.broadcast_to(marks.astype(float), scores.shape[:4])
    dataset = xr.Dataset(
        {
            "curve_samples": ((*dims, "record"), samples),
            "curve_bound": ((*dims, "record"), scores.mean(-1)),
            "log_evidence": ((*dims, "datum"), scores[..., -1, :]),
        },
        coords={"model": ["bernoulli_vae"], "objective": list(OBJECTIVES)},
    )
    return found["AEVB", 0][0], dataset


def draw(vae: torch.nn.Module, digits: pv.datasets.DataSet, dataset: xr.Dataset, out: Path) -> None:
    figure, ((left, middle, right),) = new_figure(
        columns=3, width=4.4, height=4.4, ratios=(1.1, 1, 1)
    )
    manifold_axis(left, vae, digits)
    bound_axis(middle, dataset)
    evidence_axis(right, dataset)
    for axis in (middle, right):
        axis.set_ylabel("held-out log p(x), nats per digit")
    saved(figure, out)
    with Image.open(out) as picture:  # a page loads it with every look
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the picture of README.md.")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("digits.png"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two marks only, to see that it runs")
    options = parser.parse_args()
    digits = pv.datasets.load("digits")
    marks = MARKS[:2] if options.quick else MARKS
    vae, dataset = measured(digits, options.seeds, marks)
    draw(vae, digits, dataset, options.out)


if __name__ == "__main__":
    main()
