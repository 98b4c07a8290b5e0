r"""Which data the guide serves badly: weights, log p(x) from both sides, the distance in between.

.. math:: \log p(x) - \mathrm{ELBO}(x) = KL(q(z \mid x) \,\|\, p(z \mid x))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.densities.look import Look
from pyro_vae.densities.particles import densities
from pyro_vae.diagnostics.findings import Finding, Verdict, named
from pyro_vae.evaluation import RowFunction, event_size, row_chunks
from pyro_vae.evidence.estimate import log_evidence
from pyro_vae.evidence.exact import MOST_VALUES, discrete_latents, number_of_values
from pyro_vae.evidence.weights import MOST_RHAT, Evidence
from pyro_vae.noise import Stream
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import Rows, num_rows

BAD_KHAT = 0.7
FEW = 0.05  # of the data with a large khat: a note, no verdict on the guide
CLOSE = 0.5  # nats between the bounds, or below them, from which a mean log p(x) is in doubt


@dataclass(frozen=True)
class Reliability:
    """What weights say of the guide at each of N data.

    Attributes:
        evidence: log p(x) by importance sampling from the guide, with khat and ESS, (N,) each.
        elbo: of each datum, nats, (N,).
    """

    evidence: Evidence
    elbo: Tensor

    @property
    def distance(self) -> Tensor:
        """KL(q || posterior) of each datum, nats, (N,): log p(x) less the ELBO, both estimates."""
        return self.evidence.value - self.elbo.double()

    @property
    def worst(self) -> list[int]:
        """The data by khat, the largest first; those without one before all others."""
        return self.evidence.khat.nan_to_num(math.inf).argsort(descending=True).tolist()

    def findings(self) -> list[Finding]:
        """On the tails of weights, and on the distance between guide and posterior."""
        khat, ess = self.evidence.khat, self.evidence.ess
        number = len(khat)
        large = [row for row in self.worst if not float(khat[row]) <= BAD_KHAT]
        middle = f"ESS {float(ess.median()):.0f}"
        if not khat.isnan().all():
            middle = f"median khat {float(khat.nanmedian()):.2f}, {middle}"
        unknown = int(khat.isnan().sum())
        if unknown:
            text = (
                f"{unknown:,} of {number:,} data have no khat ({middle}), so nothing says whether "
                "the guide's draws reach all of their posterior: raise num_particles to about 1000."
            )
            found = [Finding("weights", "note", text)]
        elif not large:
            text = f"No datum has a khat above {BAD_KHAT} ({number:,} data; {middle})."
            found = [Finding("weights", "good", text, 0.0)]
        else:
            share = len(large) / number
            verdict: Verdict = "bad" if share > FEW else "note"
            text = (
                f"For {len(large):,} of {number:,} data khat exceeds {BAD_KHAT}: the guide serves "
                f"them badly, its draws miss a part of their posterior (worst: {named(large)}; "
                f"{middle}); log p(x) is likely too low there."
            )
            found = [Finding("weights", verdict, text, 0.0)]
        mean = float(self.distance.mean())
        noise = float(self.distance.std()) / math.sqrt(number) if number > 1 else 0.0
        error = f" ± {noise:.3f}" if number > 1 else ""
        far = self.distance.argsort(descending=True)[:5].tolist()
        above = ", likely more, because log p(x) is too low where khat is large" if large else ""
        above = "" if unknown else above
        text = (
            f"The guide is {mean:.3f}{error} nats a datum from the posterior"
            f"{above} (KL(q || posterior) = log p(x) - ELBO; farthest: {named(far)})."
        )
        if mean < 2 * noise and not large:
            text = (
                f"The guide cannot be told from the posterior by its bound: log p(x) - ELBO, "
                f"KL(q || posterior), is {mean:.3f}{error} nats a datum."
            )
        return [*found, Finding("distance", "note", text)]


def reliability(
    program: Any, x: Any, *, num_particles: int, bound_particles: int, seed: int, progress: Any,
    cluster: Any = None,
) -> Reliability:  # fmt: skip
    """Importance weights and bounds of all data."""
    evidence = log_evidence(
        program, x, num_particles=num_particles, seed=seed, progress=progress, cluster=cluster
    )
    return Reliability(evidence, _mean_log_weight(program, x, bound_particles, seed))


def _mean_log_weight(program: Any, x: Rows, size: int, seed: int, most: int = 2**21) -> Tensor:
    """The ELBO of each datum, (N,), without closed KL terms.

    Near the posterior log weights scatter little, and at it not at all.
    """

    def bound(program: Any, rows: Rows) -> Tensor:
        return densities(program, rows, size, reparameterize=False).log_w.double().mean(0)

    batch_size = max(1, min(200, num_rows(x), most // (event_size(x) * size)))
    parts = []
    with torch.no_grad(), evaluating(program):
        function = RowFunction(program, bound)
        for number, (count, rows) in enumerate(row_chunks(x, batch_size)):
            parts.append(function(rows, *Stream.DISTANCE.key(seed, number))[:count].clone())
    return torch.cat(parts)


# --- both sides -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sandwich:
    """log p(x) from below and from above, at some of the data.

    Attributes:
        index: which data, (M,); none of simulated ones.
        bounds: ``lower`` and ``upper``, nats, (M,) each.
        importance: log p(x) of the same data by importance sampling from the guide, (M,).
        simulated: whether the data are the model's own, so that the upper bound is exact draws'.
        summed: whether both bounds are log p(x) itself, summed over the latents' few values.
    """

    index: Tensor
    bounds: Evidence
    importance: Tensor
    simulated: bool
    summed: bool = False

    @property
    def gap(self) -> Tensor:
        """Upper less lower bound, nats, (M,)."""
        return self.bounds.upper - self.bounds.lower

    def findings(self) -> list[Finding]:
        """How closely log p(x) is known, and whether the guide's weights get it right."""
        lower, upper = self.bounds.lower, self.bounds.upper
        number = len(lower)
        data = f"{number} simulated data" if self.simulated else f"{number} of the data"
        low, high = sorted([float(lower.mean()), float(upper.mean())])  # they may cross by noise
        width = float(self.gap.mean())
        text = f"Mean log p(x) of {data} lies between {low:.2f} and {high:.2f} nats"
        if self.summed:
            text = f"Mean log p(x) of {data} is {low:.2f} nats, summed over the latents' values"
        elif not self.simulated:
            text += " (the upper bound holds for chains that have converged)"
        short = (lower - self.importance).clamp_min(0)
        apart = int((self.bounds.rhat > MOST_RHAT).sum())  # of simulated data chains need not meet
        rows = [int(self.index[i]) for i in short.argsort(descending=True) if short[i] > 1]
        if float(short.mean()) > CLOSE:
            text += (
                f"; importance sampling from the guide is {float(short.mean()):.2f} nats too low "
                f"there{f', most at {named(rows)}' if rows and not self.simulated else ''}."
            )
            return [Finding("log p(x)", "bad", text, 0.0)]
        if width > CLOSE:
            text += ": not closely known, so compare models on it with care."
            return [Finding("log p(x)", "note", text, None)]
        if apart > max(1, FEW * number):
            text += f"; those of {apart} have not (R-hat above {MOST_RHAT})."
            return [Finding("log p(x)", "note", text, None)]
        return [Finding("log p(x)", "good", f"{text}.", 0.0)]


def sandwich(
    program: Any, x: Any, index: Tensor, importance: Tensor, *, latents: Any = None, seed: int,
    progress: Any = None,
) -> Sandwich:  # fmt: skip
    """Bounds of some data; by their own latents where they are simulated.

    Of latents with few values log p(x) is a sum, which also shows values that the guide never
    draws and khat cannot see.
    """
    with torch.no_grad(), evaluating(program):
        look = Look.at(program, x)
    values = number_of_values(look) if discrete_latents(look) else None
    options = {"seed": seed, "progress": progress}
    if summed := values is not None and values <= MOST_VALUES:
        bounds = log_evidence(program, x, method="exact", **options)
    else:
        bounds = log_evidence(program, x, method="sandwich", true_latents=latents, **options)
    return Sandwich(index, bounds, importance.to(bounds.value), latents is not None, summed)
