r"""What a guide gives away, in nats: to its family, and to the network that amortizes it.

.. math::
    \log p(x) - \mathrm{ELBO}
    = \underbrace{\log p(x) - \max_{q \in Q} \mathrm{ELBO}(q)}_{\text{approximation gap}}
    + \underbrace{\max_{q \in Q} \mathrm{ELBO}(q) - \mathrm{ELBO}}_{\text{amortization gap}}

for each datum, with Q the guide's family.  A richer family closes the first, a larger or longer
trained network the second.  The best q of a datum is found by refitting the family to it,
:mod:`pyro_vae.refinement.refitting`; both gaps are differences of averages over the same draws, so
most of their noise cancels.

Source: Cremer, Li & Duvenaud (2018), arXiv:1801.03558.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.checking.guards import require_possible_data
from pyro_vae.densities.look import Look
from pyro_vae.densities.missing import usable_rows
from pyro_vae.diagnostics.findings import Finding, named
from pyro_vae.evidence.importance import require_weights
from pyro_vae.evidence.weights import Evidence
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import num_rows
from pyro_vae.progress import Record, counting
from pyro_vae.refinement.refitting import PARTICLES, RATE, SCORED, STEPS, refit
from pyro_vae.turns import taking_turns

LITTLE, MUCH = 0.1, 1.0  # nats: a normal law off by half, and by one and a half, of its own width
MANY = 0.05  # of the data that may be off by much
STILL = 0.05  # nats by which a refit that has come to rest does not rise any more


@dataclass(frozen=True, eq=False, repr=False)
class Gaps:
    """The two gaps of each datum, nats; every field is (N,), float64.

    Attributes:
        approximation: log p(x) less the best ELBO of the guide's family.
        amortization: the best ELBO less that of the guide as it is.
        approximation_error, amortization_error: their standard errors.
        elbo: of the guide as it is.
        best_elbo: of the family, refitted to the datum.
        log_evidence: log p(x), by importance sampling from the refitted guide, or as it was given.
        khat: of these weights; above 0.7 log p(x) is too low, and the approximation gap with it.
        rising: by how much the ELBO still rose in the last quarter of the refit.
        index: which data these are, (N,), where they are some of more.
    """

    approximation: Tensor
    amortization: Tensor
    approximation_error: Tensor
    amortization_error: Tensor
    elbo: Tensor
    best_elbo: Tensor
    log_evidence: Tensor
    khat: Tensor
    rising: Tensor
    index: Tensor | None = None

    def __repr__(self) -> str:
        family, network = _mean(self.approximation), _mean(self.amortization)
        return (
            f"Gaps(mean over {len(self.elbo)} data, nats: approximation {_shown(family)}, "
            f"amortization {_shown(network)})"
        )

    def findings(self) -> list[Finding]:
        """A verdict on each gap by its size; an exact guide has none, so it is never called bad."""
        index = torch.arange(len(self.elbo)) if self.index is None else self.index.cpu()
        unsure = index[(~(self.khat <= 0.7)).cpu()].tolist()
        family = _sentence(
            self.approximation, self.approximation_error, index,
            "The guide's family, refitted to each datum, misses log p(x) by",
        )  # fmt: skip
        if unsure:
            family += (
                f" It is at least that: khat of log p(x) is not below 0.7 for {len(unsure)} data "
                f"({named(unsure)})."
            )
        network = _sentence(
            self.amortization, self.amortization_error, index,
            "The network's answer is worse than the family refitted to the datum by",
        )  # fmt: skip
        late = index[(self.rising > STILL).cpu()].tolist()
        if late:
            network += (
                f" It is at least that: the refit was still rising for {len(late)} data "
                f"({named(late)}); raise steps."
            )
        return [
            Finding("approximation gap", _verdict(self.approximation), family, 0.0),
            Finding("amortization gap", _verdict(self.amortization), network, 0.0),
        ]


def _mean(values: Tensor) -> float:
    return float(values.mean())


def _shown(value: float) -> str:
    """Three digits, and no zero with a sign."""
    return f"{round(value, 3) + 0.0:.3f}"


def _verdict(gap: Tensor) -> Any:
    if _mean(gap) > MUCH or float((gap > MUCH).double().mean()) > MANY:
        return "bad"
    return "good" if _mean(gap) < LITTLE else "note"


def _sentence(gap: Tensor, error: Tensor, index: Tensor, begin: str) -> str:
    of_mean = float(error.square().sum().sqrt()) / len(gap)
    mean = f"{_mean(gap):.3f}".replace("-0.000", "0.000")
    text = f"{begin} {mean} nats on average (standard error {of_mean:.3f})"
    much = (gap > MUCH).nonzero().flatten().cpu()
    if len(much):
        worst = index[much[gap.cpu()[much].argsort(descending=True)]].tolist()
        return (
            f"{text}, by more than {MUCH:g} nat for {len(much)} of {len(gap)} data, {named(worst)}."
        )
    return f"{text}, at most {float(gap.max()):.3f} (datum {int(index[int(gap.argmax())])})."


@taking_turns
def gaps(
    program: nn.Module,
    x: Any,
    *,
    log_evidence: Evidence | Tensor | None = None,
    steps: int = STEPS,
    num_particles: int = PARTICLES,
    rate: float = RATE,
    num_scored: int = SCORED,
    seed: int = 0,
    batch_size: int | None = None,
    max_elements: int = 2**21,
    progress: bool | Callable[[Record], Any] | None = None,
) -> Gaps:
    """Approximation gap and amortization gap of each datum.

    Args:
        program: the program, put into evaluation mode for as long as this takes.
        x: data (N, ...), as of ``pv.log_evidence``.
        log_evidence: log p(x) of these data where it is known better, such as the result of
            ``pv.log_evidence`` by another method, or exact values (N,).
        steps, num_particles, rate: of the refit, see ``pv.refine``.
        num_scored: draws per datum behind each ELBO and log p(x).
        seed: of the noise.
        batch_size: rows at a time; by default as many as fit.
        max_elements: particles x rows x numbers of a datum held at a time.
        progress: as of ``pv.fit``.

    Raises:
        ValueError: of ``pv.refine(program, x, method="guide")``, where a guide cannot be refitted.

    Example:
        >>> from pyro_vae.models import linear_gaussian
        >>> oracle = linear_gaussian.build(3, latent_dim=2, posterior="full")
        >>> oracle.guide_is_exact_posterior()
        >>> gaps(oracle, torch.zeros(4, 3), steps=10, progress=False)
        Gaps(mean over 4 data, nats: approximation 0.000, amortization 0.000)
    """
    options = {
        "steps": errors.whole("steps", steps),
        "num_particles": errors.whole("num_particles", num_particles),
        "num_scored": errors.whole("num_scored", num_scored, 2),
        "seed": errors.seed_number(seed),
        "batch_size": None if batch_size is None else errors.whole("batch_size", batch_size),
        "max_elements": errors.whole("max_elements", max_elements),
    }
    rate = errors.positive("rate", rate)
    rows = usable_rows(x, program)
    known = None if log_evidence is None else _known(log_evidence, num_rows(rows))
    with torch.no_grad(), evaluating(program):
        look = Look.at(program, rows)
        require_possible_data(look, rows)
        require_weights(look)
        with counting(progress, num_rows(rows), label="gaps") as advance:
            found = refit(program, rows, rate=rate, advance=advance, **options)  # type: ignore[arg-type]
    value, error, khat = found.evidence.value, found.gap_error, found.evidence.khat
    if known is not None:
        value, error, khat = known[0], torch.hypot(known[1], found.elbo_error), known[2]
    return Gaps(
        approximation=value - found.elbo,
        amortization=found.elbo - found.elbo_before,
        approximation_error=error,
        amortization_error=found.gain_error,
        elbo=found.elbo_before,
        best_elbo=found.elbo,
        log_evidence=value,
        khat=khat,
        rising=found.rising,
    )


def _known(given: Evidence | Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x), its standard error, and khat."""
    value = (given.value if isinstance(given, Evidence) else torch.as_tensor(given)).detach()
    if value.shape != (count,):
        raise ValueError(
            f"log_evidence has shape {tuple(value.shape)}, expected ({count},), a number for each "
            "datum of x"
        )
    value = value.double()
    if isinstance(given, Evidence):
        return value, given.standard_error.double(), given.khat.double()
    return value, torch.zeros_like(value), torch.zeros_like(value)
