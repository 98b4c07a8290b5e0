r"""Misspecification: are the data as probable as data of the model's own?

.. math:: r_n = \#\{m : \log \hat p(x^{sim}_m) \le \log \hat p(x_n)\}, \qquad
    x^{sim}_m \sim p(x), \quad m = 1 \ldots M

The same estimator with the same number of particles is applied to both, so that where the model is
true all N + M numbers are exchangeable, however biased the estimator is: ranks are uniform, and
whether they are is tested.  Improbable data are outliers; but data can also be *too* probable, as
smooth pictures are under a model that makes noisy ones, and both are rejected.

Sources: Bishop (1994), "Novelty detection and neural network validation"; Nalisnick et al. (2019),
arXiv:1906.02994, for typicality, and why a high log p(x) is no good sign by itself; Kolmogorov and
Smirnov's test of two samples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.densities.missing import usable_rows
from pyro_vae.diagnostics.findings import Finding, named
from pyro_vae.diagnostics.replicates import observed_of, simulated
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.evidence.estimate import log_evidence
from pyro_vae.evidence.weights import Evidence
from pyro_vae.noise import Stream, seed_of
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import as_many_rows, map_rows, num_rows
from pyro_vae.progress import Record, counting
from pyro_vae.turns import taking_turns

SHOWN = 5


@dataclass(frozen=True, eq=False, repr=False)
class Misspecification:
    """log p(x) of the data among that of data of the model's own.

    Attributes:
        log_evidence: of the data, (N,), float64, nats.
        simulated: the same of simulated data, (M,).
        p_value: of each datum, (N,): how often one of the model's own has a log p(x) as extreme,
            on either side.
        uniformity: p-value of the test that both have one law.
        below: how many data are less probable than every simulated one.
        below_p_value: how often as many are by chance.
        unsure: for how many of all data khat is not below 0.7.
        level: of both tests.
    """

    log_evidence: Tensor
    simulated: Tensor
    p_value: Tensor
    uniformity: float
    below: int
    below_p_value: float
    unsure: int
    level: float

    @property
    def strangest(self) -> list[int]:
        """The data by number, the least probable first."""
        return self.log_evidence.argsort().tolist()

    def __repr__(self) -> str:
        return (
            f"Misspecification({len(self.log_evidence)} data against {len(self.simulated)} "
            f"simulated: uniformity p = {self.uniformity:.3g}, {self.below} below all)"
        )

    def findings(self) -> list[Finding]:
        """Whether the data are as probable as the model's own, and whether some stand out."""
        own, model = float(self.log_evidence.mean()), float(self.simulated.mean())
        differ = self.uniformity <= self.level
        count = len(self.log_evidence)
        side = "less" if own < model else "more"
        how = f"The data are {side} probable than the model's own, or otherwise unlike them"
        how = how if differ else f"{count:,} data do not differ visibly from the model's own"
        text = (
            f"{how}: log p(x) is {own:.2f} on average "
            f"against {model:.2f} of {len(self.simulated)} simulated ones, uniformity of ranks "
            f"p = {self.uniformity:.3g}."
        )
        both = len(self.log_evidence) + len(self.simulated)
        if self.unsure:
            text += f" khat is not below 0.7 for {self.unsure} of these {both}"
            text += (
                ", so that the guide, which may serve one of the two worse, can be what differs: "
                'pass method="annealed".'
                if differ
                else "."
            )
        verdict: Any = "bad" if differ else "good"
        found = [Finding("misspecification", verdict, text, self.level)]
        attained, least = _attained(len(self.log_evidence), len(self.simulated), self.level)
        first = self.strangest[: max(SHOWN, self.below)]
        text = (
            f"{self.below} data are less probable than every one of {len(self.simulated)} simulated"
            f" ones (p = {self.below_p_value:.3g}); the least probable: {named(first)}."
        )
        verdict = "bad" if self.below >= least else "good"
        return [*found, Finding("outliers", verdict, text, attained)]


def _chance(below: int, data: int, own: int) -> float:
    """How often at least so many of N data are less than all of M of the same law."""
    ratios = ((data - i) / (data + own - i) for i in range(below))
    return math.prod(ratios)


def _attained(data: int, own: int, level: float) -> tuple[float, int]:
    """The rate at which data are called outliers, at most ``level``, and from how many on."""
    least = next((c for c in range(1, data + 1) if _chance(c, data, own) <= level), data + 1)
    return (_chance(least, data, own) if least <= data else 0.0), least


@taking_turns
def misspecification(
    program: nn.Module,
    x: Any,
    *,
    known: Evidence | None = None,
    num_simulated: int | None = None,
    level: float = 0.05,
    seed: int = 0,
    progress: bool | Callable[[Record], Any] | None = None,
    **evidence: Any,
) -> Misspecification:
    """Rank log p(x) of each datum among that of data which the model simulates.

    Args:
        program: the program, put into evaluation mode for as long as this takes.
        x: data (N, ...).  Simulated data have their covariates, and miss what they miss.
        known: log p(x) of the data, where it has been estimated with the same options.
        num_simulated: M, by default N or the multiple of it that is at least 500.
        level: of each of two tests.
        seed: of the noise.
        progress: as of ``pv.fit``.
        evidence: options of ``pv.log_evidence``, such as ``num_particles=100`` or a method.

    Raises:
        ValueError: of ``pv.log_evidence``; or a model that observes a function of x.
    """
    level, seed = errors.within("level", level, "(0, 1)"), errors.seed_number(seed)
    evidence = {"progress": False, **evidence}
    rows = usable_rows(x, program)
    count = num_rows(rows)
    num_simulated = errors.whole(
        "num_simulated", count * -(-500 // count) if num_simulated is None else num_simulated
    )
    index = as_many_rows(count, num_simulated, seed)
    form = map_rows(lambda t: t[index.to(t.device)], rows)
    with torch.no_grad(), evaluating(program):
        own = simulated(program, form, observed_of(program, form), _seed(seed))
    if known is not None and len(known.value) != count:
        raise ValueError(
            f"known has {len(known.value)} rows and x has {count}: pass pv.log_evidence(program, x)"
        )
    scored: list[Evidence] = []
    with counting(progress, count + num_simulated, label="misspecification") as advance:
        for number, (each, size) in enumerate(((rows, count), (own, num_simulated))):
            if number == 0 and known is not None:
                scored.append(known)
            else:
                with warnings.catch_warnings():  # what they say is said of both together
                    warnings.simplefilter("ignore", PyroVaeWarning)
                    scored.append(log_evidence(program, each, seed=_seed(seed, number), **evidence))
            advance(size)
    data, model = (each.value.double() for each in scored)
    unsure = sum(int((~(each.khat <= 0.7)).sum()) for each in scored)
    return of_log_evidence(data, model, level=level, unsure=unsure)


def _seed(seed: int, *numbers: int) -> int:
    return seed_of(*Stream.SIMULATED.key(seed, *numbers)) >> 1


def of_log_evidence(
    data: Tensor, model: Tensor, *, level: float = 0.05, unsure: int = 0
) -> Misspecification:
    """The same from log p(x) of the data (N,) and of simulated ones (M,), by one estimator."""
    from scipy.stats import ks_2samp

    below = torch.searchsorted(model.sort().values, data)  # simulated ones that are less
    up_to = torch.searchsorted(model.sort().values, data, right=True)  # data may have few values
    shares = torch.stack([up_to + 1, len(model) - below + 1]).double() / (len(model) + 1)
    fewer = int((data < model.min()).sum())
    return Misspecification(
        data,
        model,
        (2 * shares.amin(0)).clamp_max(1.0),
        float(ks_2samp(data.cpu().numpy(), model.cpu().numpy()).pvalue),
        fewer,
        _chance(fewer, len(data), len(model)),
        unsure,
        level,
    )
