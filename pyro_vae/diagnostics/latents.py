r"""What each latent carries, and whether the prior is what the data ask of it.

Over N data, with :math:`\bar q(z) = \frac1N \sum_n q(z \mid x_n)` the aggregate posterior:

.. math::
    \underbrace{\frac1N \sum_n KL(q(z \mid x_n) \,\|\, p(z))}_{\text{rate}}
    = I_q(x; z) + KL(\bar q(z) \,\|\, p(z)),

so the rate is at least the mutual information.  From below that is held by
E log q(z | x) - log (1/M) sum_m q(z | x_m) over M of the data, which cannot exceed log M.

Source: Burda, Grosse & Salakhutdinov (2016), section 5.2, for active units; Hoffman & Johnson
(2016) for the identity; Poole et al. (2019), arXiv:1905.06922, section 2.2, for the bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.calibration.ranks import coordinates
from pyro_vae.calibration.uniformity import holm
from pyro_vae.densities.look import Look
from pyro_vae.densities.particles import densities
from pyro_vae.densities.sites import latents_of, values_of
from pyro_vae.densities.traces import At, sites_of
from pyro_vae.diagnostics.findings import Finding, named
from pyro_vae.evaluation import RowFunction, event_size, row_chunks
from pyro_vae.noise import Stream
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import Rows, map_rows, num_rows, some_rows

ACTIVE = 0.01  # variance over data of a posterior mean, in units of the prior's variance
DRAWS = 100  # of the guide for each datum
MOST = 400  # data whose guides are held against each other
SEEN = 1.0  # nats below log M up to which the lower bound of the information is not cut off by it


@dataclass(frozen=True)
class LatentProfile:
    """What the latents of a guide do over N data; C numbers in all latents together.

    Attributes:
        names: of the C coordinates: "z[0]", "z[1]", ...
        mean, sd: of the guide's draws, (N, C).
        draw: one draw of each datum's guide: N draws of the aggregate posterior, (N, C).
        prior: draws of the prior, (S, C).
        rate: KL(q || p) of all latents of a datum, nats, (N,); sampled where no closed form is.
        information: mutual information of x and z under the guide: a lower bound and its standard
            error, nats.
        compared: M, of how many data.
        level: of the verdict on prior and aggregate posterior.
        points: the latents whose guide is a point, which has no density to measure by.
    """

    names: list[str]
    mean: Tensor
    sd: Tensor
    draw: Tensor
    prior: Tensor
    rate: Tensor
    information: tuple[float, float]
    compared: int
    level: float
    points: tuple[str, ...] = ()

    @property
    def activity(self) -> Tensor:
        """Variance over data of the posterior mean, over the prior's variance, (C,).

        Less what the noise of so many draws adds to a mean; nan of one datum.
        """
        if len(self.mean) == 1:
            return torch.full_like(self.mean[0], math.nan)
        variance = (self.mean.var(0) - self.sd.square().mean(0) / DRAWS).clamp_min(0)
        return variance / self.prior.var(0).clamp_min(1e-300)

    @property
    def active(self) -> Tensor:
        """Which coordinates the data move, (C,)."""
        return self.activity > ACTIVE

    @property
    def contraction(self) -> Tensor:
        """1 - mean posterior variance / prior variance, (C,)."""
        return 1 - self.sd.square().mean(0) / self.prior.var(0).clamp_min(1e-300)

    @property
    def dispersion(self) -> Tensor:
        """Standard deviation of the aggregate posterior over that of the prior, (C,)."""
        if len(self.draw) == 1:
            return torch.full_like(self.draw[0], math.nan)
        return self.draw.std(0) / self.prior.std(0).clamp_min(1e-150)

    def distances(self) -> tuple[np.ndarray, np.ndarray]:
        """Between aggregate posterior and prior: Kolmogorov's distance and its p-value, (C,) each.

        Without a continuous law the p-values are too large, if anything.
        """
        from scipy.stats import ks_2samp

        pairs = zip(self.draw.T.cpu().numpy(), self.prior.T.cpu().numpy(), strict=True)
        found = [ks_2samp(mine, theirs, method="asymp") for mine, theirs in pairs]
        return np.array([f.statistic for f in found]), np.array([f.pvalue for f in found])

    def findings(self) -> list[Finding]:
        """On collapse, on what z says of x, and on the prior."""
        return [self._on_activity(), self._on_information(), self._on_the_prior()]

    def _on_activity(self) -> Finding:
        active = self.active
        number, still = (
            len(self.names),
            [n for n, a in zip(self.names, active, strict=True) if not a],
        )
        moved = f"{int(active.sum())} of {number} latents are active"
        low, error = self.information
        if len(self.mean) == 1:
            text = "One datum does not show which latents the data move."
            return Finding("active latents", "note", text)
        if not active.any() and low < 3 * error + 1e-3:
            text = (
                f"The guide has collapsed: the data move no latent's posterior mean ({number} "
                f"with a variance below {ACTIVE} of the prior's), and the latents say nothing "
                "about x."
            )
            return Finding("active latents", "bad", text)
        if not active.any():
            text = f"{moved} by their means, though the guide's width or shape follows the data."
            return Finding("active latents", "note", text)
        if not still:
            return Finding("active latents", "note", f"{moved}: the data move all of them.")
        text = f"{moved}; the data hardly move the mean of {named(still, 8)}."
        return Finding("active latents", "note", text)

    def _on_information(self) -> Finding:
        if self.points:
            text = (
                f"Not said: the guide of {named(list(self.points))} is a point (Delta), whose "
                "KL(q || prior) is infinite."
            )
            return Finding("information", "note", text)
        low, error = self.information
        rate = float(self.rate.mean())
        ceiling = math.log(self.compared)
        if self.compared == 1:
            text = f"The rate, KL(q || prior), is {rate:.2f} nats; z says no more about x."
        elif low > ceiling - SEEN:
            text = (
                f"The latents carry between {low:.1f} nats about x (as much as {self.compared} "
                f"data can show) and {rate:.1f} (the rate, KL(q || prior))."
            )
        elif low + 2 * error > rate:
            text = (
                f"The latents carry about as many nats about x as the rate has, KL(q || prior) = "
                f"{rate:.2f} (from below {max(low, 0.0):.2f} ± {error:.2f})."
            )
        else:
            text = (
                f"The latents carry at least {max(low, 0.0):.2f} ± {error:.2f} nats about x and at "
                f"most {rate:.2f}, the rate, KL(q || prior); between the two is the distance of "
                f"the aggregate posterior of {self.compared} data from the prior."
            )
        return Finding("information", "note", text)

    def _on_the_prior(self) -> Finding:
        distance, p = self.distances()
        adjusted = holm(p)
        order = distance.argsort()[::-1]
        bad = [int(i) for i in order if adjusted[i] < self.level]
        question = "aggregate posterior"
        if not bad:
            text = (
                f"Over {len(self.draw):,} data no difference is seen between the guide's draws "
                f"and the prior's (largest distance {distance.max():.3f}, smallest "
                f"adjusted p {adjusted.min():.2g})."
            )
            return Finding(question, "good", text, self.level)
        ratio = self.dispersion
        wide = [self.names[i] for i in bad if float(ratio[i]) > 1.1]
        tight = [self.names[i] for i in bad if float(ratio[i]) < 0.9]
        how = [f"too wide for it: {named(wide)}"] if wide else []
        how += [f"too narrow for it: {named(tight)}"] if tight else []
        said = f" ({'; '.join(how)})" if how else ""
        worst = bad[0]
        text = (
            f"Over the data the guide's draws are not the prior's{said}: {len(bad)} of "
            f"{len(self.names)} latents differ, most {self.names[worst]} (distance "
            f"{distance[worst]:.2f}, sd {float(ratio[worst]):.2f} of the prior's): draws of the "
            "prior may decode to what no datum is like."
        )
        return Finding(question, "bad", text, self.level)


def profile(
    program: Any,
    x: Rows,
    prior: dict[str, Tensor],
    *,
    level: float = 0.01,
    seed: int = 0,
    batch_size: int = 200,
    max_elements: int = 2**21,
) -> LatentProfile:
    """What the latents of a guide do over the data.

    Args:
        program: the program.
        x: rows, (N, ...).
        prior: draws of it by site, rows in front.
        level: of the verdict on prior and aggregate posterior.
        seed: of the noise.
        batch_size, max_elements: bound the memory.
    """
    if num_rows(x) < 2:
        raise ValueError(
            "x is 1 datum, expected two or more, because it is asked how latents vary from datum "
            "to datum: pass more"
        )
    event = event_size(x)
    batch_size = max(1, min(batch_size, num_rows(x), max_elements // (event * DRAWS)))

    def moments(program: Any, rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        d = densities(program, rows, DRAWS, reparameterize=False)
        draws = torch.stack([value for _, value in coordinates(d.latents, lead=2)], -1).double()
        return (
            draws.mean(0),
            draws.std(0),
            draws[0],
            torch.stack(list(d.kl_terms.values())).sum(0).double(),
        )

    parts = []
    with torch.no_grad(), evaluating(program):
        function = RowFunction(program, moments)
        for number, (count, rows) in enumerate(row_chunks(x, batch_size)):
            found = function(rows, *Stream.PROFILE.key(seed, number))
            parts.append([column[:count].clone() for column in found])
        chosen = some_rows(num_rows(x), MOST, seed)
        few = map_rows(lambda t: t[chosen.to(t.device)], x)
        information = _information(program, few, seed)
        look = Look.at(program, x)
        names = list(look.latents)
        of_draws = any(site.is_auxiliary for site in look.guide.values())  # that have a density
        points = () if of_draws else tuple(n for n, s in look.latents.items() if s.is_point)
    mean, sd, draw, rate = (torch.cat(column) for column in zip(*parts, strict=True))
    held = {name: prior[name] for name in names}
    named_prior = dict(coordinates(held))
    return LatentProfile(
        list(named_prior), mean, sd, draw, torch.stack(list(named_prior.values()), -1).double(),
        rate, information, num_rows(few), level, points,
    )  # fmt: skip


def _information(program: Any, x: Rows, seed: int) -> tuple[float, float]:
    """The lower bound of I_q(x; z) from M data, and its standard error, nats."""
    number = num_rows(x)

    def drawn(program: Any, rows: Rows) -> dict[str, Tensor]:
        return values_of(sites_of(program, "guide", rows))

    def scored(program: Any, both: tuple[Rows, dict[str, Tensor]]) -> Tensor:
        rows, latents = both
        sites = latents_of(sites_of(program, "guide", rows, At(latents)))
        return torch.stack([site.per_datum() for site in sites.values()]).sum(0).double()

    latents = RowFunction(program, drawn)(x, *Stream.PROFILE.key(seed, 0, 1))
    score = RowFunction(program, scored)
    columns = []  # log q(z_n | x_m), of each n all m
    for row in range(number):
        one = {n: v[row : row + 1].expand(number, *v.shape[1:]) for n, v in latents.items()}
        columns.append(score((x, {n: v.contiguous() for n, v in one.items()}), *Stream.LOOK.key(0)))
    table = torch.stack(columns)
    each = table.diagonal() - (table.logsumexp(1) - math.log(number))
    error = float(each.std()) / math.sqrt(number) if number > 1 else math.nan
    return float(each.mean()), error
