r"""Simulation-based calibration across data: where the truth lies among the guide's draws.

For pairs :math:`(z, x) \sim p(z) p(x \mid z)` and L draws of the guide at that x, the rank

.. math:: r = \#\{l : f(z_l, x) < f(z, x)\}

of any quantity f is uniform on 0..L if the guide is the posterior.  Usually this takes an inference
for each x; an amortized guide is one already.

Several kinds of quantity are needed: every coordinate of the latents, log p(x | z) and log p(x, z).
With the coordinates alone a guide that ignores x passes, because its draws are the prior's, and so,
over all data, are the truths; with log p(x | z) alone shifts pass that leave the likelihood as it
is; and with both a guide passes that draws as independent what hangs together in the prior.

Source: Talts et al. (2018), arXiv:1804.06788; Modrák et al. (2023), arXiv:2211.02383, for
quantities that see the data.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.calibration.uniformity import ecdf_band, ecdf_difference
from pyro_vae.densities.enumeration import model_sites
from pyro_vae.densities.particles import densities
from pyro_vae.densities.sites import values_of
from pyro_vae.densities.tables import tabulated
from pyro_vae.densities.traces import At, sites_of
from pyro_vae.evaluation import RowFunction, event_size, row_chunks
from pyro_vae.noise import Stream, seed_of
from pyro_vae.predictive.simulating import Simulated, simulate
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import Rows, num_rows
from pyro_vae.turns import taking_turns

Quantity = Callable[[Rows, dict[str, Tensor]], Tensor]  # x, latents (B, ...) -> (B,)
Curves = dict[str, np.ndarray]  # by quantity
DENSITIES = ("log_likelihood", "log_joint")


class Ranks(NamedTuple):
    """Where truths lie among L draws of the guide; N simulated data.

    Attributes:
        ranks: by quantity, (N,) whole numbers from 0 to L: "z[0]", "z[1]", ..., "log_likelihood",
            "log_joint", and quantities of the caller's.
        num_draws: L.
        truth: the quantities at the latents that x was drawn at, (N,) each.
        mean, sd: of the guide's draws, (N,) each.
        is_latent: by quantity, whether it is a coordinate of a latent.
    """

    ranks: dict[str, np.ndarray]
    num_draws: int
    truth: dict[str, np.ndarray]
    mean: dict[str, np.ndarray]
    sd: dict[str, np.ndarray]
    is_latent: dict[str, bool]

    def pit(self) -> dict[str, np.ndarray]:
        """The ranks as places between 0 and 1, (N,) each."""
        return {name: (rank + 0.5) / (self.num_draws + 1) for name, rank in self.ranks.items()}

    def curves(self, prob: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, Curves]:
        """Places u, the band that uniform ranks stay within with this probability, and the curves.

        Each is the share of ranks below (L + 1) u, less u.
        """
        number = len(next(iter(self.ranks.values())))
        u, lower, upper = ecdf_band(number, self.num_draws, prob)
        found = {n: ecdf_difference(r, self.num_draws, u) for n, r in self.ranks.items()}
        return u, lower - u, upper - u, found

    def coverage(self, prob: float) -> dict[str, float]:
        """How many truths lie in the guide's central intervals of this probability, by quantity.

        The interval lies between two order statistics of the draws.  Where L draws have none of
        exactly this probability, the shares of the next narrower and wider one are mixed.
        """
        prob = errors.within("prob", prob, "(0, 1)", "0.9 is usual")
        cells = self.num_draws + 1
        left_out = (1 - prob) * cells / 2  # ranks beyond each end
        least, more = int(left_out), left_out - int(left_out)

        def share(cut: int, rank: np.ndarray) -> float:
            return float(((rank >= cut) & (rank <= self.num_draws - cut)).mean())

        return {
            name: (1 - more) * share(least, rank) + more * share(least + 1, rank)
            for name, rank in self.ranks.items()
        }


@taking_turns
def simulated_ranks(
    program: Any,
    like: Any = None,
    *,
    num_simulations: int = 10_000,
    num_draws: int = 99,
    quantities: Mapping[str, Quantity] | None = None,
    simulated: Simulated | None = None,
    seed: int = 0,
    batch_size: int = 200,
    max_elements: int = 2**21,
    advance: Callable[[int], Any] | None = None,
) -> Ranks:
    """Rank simulated latents among the guide's draws at the data that were drawn at them.

    Args:
        program: the program.
        like: see :func:`~pyro_vae.calibration.simulate`.
        num_simulations: N; 1000 see a scale that is wrong by a tenth one time in four, 10,000
            practically always.
        num_draws: L; with 99 ranks fall into 100 equal cells.
        quantities: further ones by name, functions of x and the latents by site to (B,).
        simulated: pairs to use in place of new ones.
        seed: of the noise.
        batch_size, max_elements: bound the memory, as of :func:`pyro_vae.log_evidence`.
        advance: called with the number of data that are done.

    Ties, as of discrete latents, are broken at random, which keeps ranks uniform.

    Raises:
        ValueError: as of :func:`~pyro_vae.calibration.simulate`; or a quantity that is not (B,).
    """
    num_draws, seed = errors.whole("num_draws", num_draws), errors.seed_number(seed)
    if simulated is None:
        simulated = simulate(program, num_simulations, like=like, seed=seed)
    x, truths = simulated
    event = event_size(x)
    batch_size = max(1, min(batch_size, num_rows(x), max_elements // event))
    size = max(1, min(num_draws, max_elements // (event * batch_size)))
    own = dict(quantities or {})
    known: dict[str, bool] = {}

    def valued(program: Any, both: tuple[Rows, dict[str, Tensor]], size: int) -> Values:
        """By quantity its value at the truth (B,), and at draws of the guide (size, B).

        They are compared outside, because a graph has its own rounding.
        """
        rows, truth = both
        d = densities(program, rows, size, reparameterize=False)
        among = d.latents, (d.log_likelihood, d.log_p)
        found = {}
        for name, value, draws in _quantities(rows, among, _at(program, rows, truth), own):
            known.setdefault(name, name not in own and name not in DENSITIES)
            found[name] = value, draws
        return found

    pieces = -(-num_draws // size)  # of one size, so that one graph serves all
    size = -(-num_draws // pieces)
    calls = -(-num_rows(x) // batch_size) * pieces
    function = RowFunction(program, partial(valued, size=size), calls=calls)
    parts: list[dict[str, np.ndarray]] = []
    with torch.no_grad(), evaluating(program):
        for chunk, (count, both) in enumerate(_pairs(x, truths, batch_size)):
            table: dict[str, np.ndarray] = {}
            for part in range(pieces):
                now = min(size, num_draws - part * size)
                found = function(both, *Stream.RANKS.key(seed, chunk, part))
                for name, (value, draws) in found.items():
                    new = _counted(value, draws[:now])
                    if name in table:
                        table[name][1:] += new[1:]
                    else:
                        table[name] = new
            rng = np.random.default_rng(seed_of(*Stream.RANKS.key(seed, chunk)))
            for columns in table.values():  # any number of what is tied counts as below
                columns[1] += np.floor(rng.random(columns.shape[1]) * (columns[2] + 1))
            parts.append({name: columns[:, :count] for name, columns in table.items()})
            if advance is not None:
                advance(count)
    whole = {name: np.concatenate([part[name] for part in parts], 1) for name in parts[0]}
    mean = {name: columns[3] / num_draws for name, columns in whole.items()}
    return Ranks(
        {name: columns[1].astype(np.int64) for name, columns in whole.items()},
        num_draws,
        {name: columns[0] for name, columns in whole.items()},
        {name: columns[0] + mean[name] for name, columns in whole.items()},
        {
            name: np.sqrt(np.maximum(columns[4] / num_draws - mean[name] ** 2, 0))
            * np.sqrt(num_draws / max(num_draws - 1, 1))
            for name, columns in whole.items()
        },
        {name: known[name] for name in whole},
    )


Values = dict[str, tuple[Tensor, Tensor]]


def _counted(value: Tensor, draws: Tensor) -> np.ndarray:
    """The truth; of the draws how many are below it and how many equal; sums and squares, (5, B).

    Sums are about the truth, so that their squares do not cancel.
    """
    off = (draws - value).double()
    below, tied = (draws < value).sum(0).double(), (draws == value).sum(0).double()
    columns = [value.double(), below, tied, off.sum(0), off.square().sum(0)]
    return torch.stack(columns).cpu().numpy()


def _pairs(x: Rows, truths: dict[str, Tensor], batch_size: int) -> Any:
    """Chunks of rows with their latents."""
    chunks = row_chunks(x, batch_size)
    for (count, rows), (_, truth) in zip(chunks, row_chunks(truths, batch_size), strict=True):
        yield count, (rows, truth)


Scored = tuple[dict[str, Tensor], tuple[Tensor, Tensor]]  # latents, log p(x | z) and log p(x, z)


def _at(program: Any, rows: Rows, truth: dict[str, Tensor]) -> Scored:
    """The guide's latents with their densities, at the truth."""
    guide = sites_of(program, "guide", rows, At(truth))
    latents = values_of(guide)
    d = tabulated(rows, guide, model_sites(program, rows, latents))
    return latents, (d.log_likelihood, d.log_p)


def _quantities(rows: Rows, among_draws: Scored, at_truth: Scored, own: dict[str, Quantity]) -> Any:
    """Name, value at the truth (B,), values at the draws (L, B)."""
    (draws, drawn), (truths, true) = among_draws, at_truth
    ours, theirs = coordinates(truths), coordinates({n: draws[n] for n in truths}, lead=2)
    for (name, value), (_, among) in zip(ours, theirs, strict=True):
        yield name, value, among
    yield from zip(DENSITIES, true, drawn, strict=True)
    count, size = len(true[0]), len(drawn[0])
    for name, quantity in own.items():
        at = [quantity(rows, {n: v[k] for n, v in draws.items()}) for k in range(size)]
        value = quantity(rows, truths)
        if not isinstance(value, Tensor) or value.shape != (count,):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f'the quantity "{name}" is {got} for {count} rows, expected '
                f"({count},): one number a datum, from x (B, ...) and latents (B, ...)"
            )
        yield name, value, torch.stack(at)


def coordinates(latents: Mapping[str, Tensor], lead: int = 1) -> Iterator[tuple[str, Tensor]]:
    """Every number of every latent by name, "z[0]", "w[2,1]", "k", with ``lead`` dimensions."""
    for site, value in latents.items():
        flat = value.reshape(*value.shape[:lead], -1)
        for number, place in enumerate(itertools.product(*map(range, value.shape[lead:]))):
            inside = f"[{','.join(map(str, place))}]" if place else ""
            yield f"{site}{inside}", flat[..., number]
