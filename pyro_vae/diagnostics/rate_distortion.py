r"""A rate-distortion curve: what a datum costs to encode, and what is lost, at every trade-off.

For each b the guide's family is refitted to each datum under

.. math:: \max_q \; b \, E_q \log p(x \mid z) - KL(q \,\|\, p(z)),

and the curve is (rate, distortion) = (KL, -E log p(x|z)), both in nats.  At b = 1 their sum is the
negative ELBO of the best q; a small b shows what a few nats buy, a large one what the decoder can
do at most, which tells a decoder that ignores z (flat) from one that overfits.  Since q is of the
guide's family, the curve lies on or above the one of this decoder and prior.

Sources: Alemi et al. (2018), arXiv:1711.00464; Huang, Sinha & Grosse (2020), arXiv:2008.06653,
whose annealed importance sampling needs no family, at many times the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.checking.guards import require_possible_data
from pyro_vae.densities.look import Look
from pyro_vae.densities.missing import usable_rows
from pyro_vae.densities.particles import densities
from pyro_vae.diagnostics.findings import Finding
from pyro_vae.evaluation import RowFunction, row_chunks
from pyro_vae.evidence.importance import require_weights
from pyro_vae.noise import Stream
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import Rows, num_rows, observed_rows
from pyro_vae.progress import Record, counting
from pyro_vae.refinement.refitting import OFFSETS, PARTICLES, refit
from pyro_vae.turns import taking_turns

BETAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BETA = "weight of the likelihood"  # the entry of a batch that holds it
SCORED = 100  # draws behind each point


@dataclass(frozen=True, eq=False, repr=False)
class RateDistortion:
    """The curve of each datum; ``rate.mean(1)`` against ``distortion.mean(1)`` is that of all.

    Attributes:
        betas: the weights of the likelihood, (M,), ascending.
        rate: KL(q || p(z)), (M, N), float64, nats.
        distortion: -E_q log p(x | z), (M, N), float64, nats.
    """

    betas: Tensor
    rate: Tensor
    distortion: Tensor

    def __repr__(self) -> str:
        points = [
            f"{float(b):g}: {float(r):.2f} + {float(d):.2f}"
            for b, r, d in zip(self.betas, self.rate.mean(1), self.distortion.mean(1), strict=True)
        ]
        return f"RateDistortion(mean nats, b: rate + distortion; {', '.join(points)})"

    def findings(self) -> list[Finding]:
        """What the first and the last of the nats of rate buy."""
        rate, lost = self.rate.mean(1), self.distortion.mean(1)
        text = (
            f"From {float(rate[0]):.2f} to {float(rate[-1]):.2f} nats a datum of rate the "
            f"distortion falls from {float(lost[0]):.2f} to {float(lost[-1]):.2f} nats."
        )
        return [Finding("rate and distortion", "note", text, None)]


class Powered(dist.TorchDistribution):
    """A law whose density is raised to a power, without its normalizer: b log p."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, base_dist: Any, power: Tensor) -> None:
        self.base_dist, self.power = base_dist, power
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.base_dist.support

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.base_dist.sample(sample_shape)

    def log_prob(self, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return self.power * self.base_dist.log_prob(value, *args, **kwargs)


class _Powering(Messenger):
    def __init__(self, power: Tensor) -> None:
        super().__init__()
        self.power = power

    def _pyro_sample(self, msg) -> None:
        named = (msg["infer"] or {}).get("_deterministic")
        if msg["is_observed"] and not named and not isinstance(msg["fn"], dist.Unit):
            msg["fn"] = Powered(msg["fn"], self.power)


class Tempered(nn.Module):
    """A program whose likelihood has a weight, which is an entry of the data."""

    def __init__(self, program: nn.Module, x: Rows) -> None:
        super().__init__()
        self.program, self._alone = program, not isinstance(x, dict)
        for name in ("observed", "plate"):
            if isinstance(getattr(program, name, None), str):
                setattr(self, name, getattr(program, name))
        self.train(program.training)

    def model(self, x: dict[str, Tensor]) -> None:
        with _Powering(x[BETA][0]):
            self._functions.model(self._without(x))

    def guide(self, x: dict[str, Tensor]) -> None:
        self._functions.guide(self._without(x))

    @property
    def _functions(self) -> Any:
        return self.program

    def _without(self, x: dict[str, Tensor]) -> Rows:
        return x["x"] if self._alone else {k: v for k, v in x.items() if k != BETA}


@taking_turns
def rate_distortion(
    program: nn.Module,
    x: Any,
    *,
    betas: Sequence[float] = BETAS,
    steps: int = 150,
    num_particles: int = PARTICLES,
    num_scored: int = SCORED,
    seed: int = 0,
    batch_size: int | None = None,
    max_elements: int = 2**21,
    progress: bool | Callable[[Record], Any] | None = None,
) -> RateDistortion:
    """Trace the curve from small weights of the likelihood to large ones, each from the one before.

    Args:
        program: the program, put into evaluation mode for as long as this takes.
        x: data (N, ...).
        betas: the weights.
        steps, num_particles: of each refit, see ``pv.refine``.
        num_scored: draws per datum behind each point; a rate in closed form needs none.
        seed: of the noise.
        batch_size: rows at a time; by default as many as fit.
        max_elements: particles x rows x numbers of a datum held at a time.
        progress: as of ``pv.fit``.

    Raises:
        ValueError: of ``pv.refine(program, x, method="guide")``; betas that are not positive.
    """
    if isinstance(betas, str) or not len(betas):
        raise ValueError(f"betas is {betas!r}, expected positive numbers, such as {BETAS}")
    weights = sorted(errors.positive("betas", b) for b in betas)
    seed, num_scored = errors.seed_number(seed), errors.whole("num_scored", num_scored, 2)
    options: dict[str, Any] = {
        "steps": errors.whole("steps", steps),
        "num_particles": errors.whole("num_particles", num_particles),
        "batch_size": None if batch_size is None else errors.whole("batch_size", batch_size),
        "max_elements": errors.whole("max_elements", max_elements),
        "num_scored": num_scored,
        "seed": seed,
    }
    rows = usable_rows(x, program)
    points = []
    with torch.no_grad(), evaluating(program):
        look = Look.at(program, rows)
        require_possible_data(look, rows)
        require_weights(look)
        tempered, offsets = Tempered(program, rows), None
        entries = rows if isinstance(rows, dict) else {"x": rows}
        total = len(weights) * num_rows(rows)
        with counting(progress, total, label="rate and distortion") as advance:
            for weight in weights:
                like = torch.zeros((), device=observed_rows(rows).device)
                column = like.expand(num_rows(rows)) + weight
                found = refit(
                    tempered, {**entries, BETA: column}, start=offsets, advance=advance, **options
                )
                offsets = found.rows[OFFSETS]
                points.append(_point(found, num_scored, seed, max_elements))
    rate, lost = (torch.stack(column) for column in zip(*points, strict=True))
    return RateDistortion(torch.tensor(weights, dtype=torch.float64), rate, lost)


def _point(found: Any, num_scored: int, seed: int, max_elements: int) -> tuple[Tensor, Tensor]:
    """Rate and distortion of each datum, the likelihood as it is."""

    def terms(program: nn.Module, rows: Rows) -> tuple[Tensor, Tensor]:
        d = densities(program, rows, num_scored, reparameterize=False)
        return sum(d.kl_terms.values()), -d.log_likelihood.mean(0)  # type: ignore[return-value]

    rows = {**found.rows, BETA: torch.ones_like(found.rows[BETA])}
    event = max(1, sum(t[0].numel() for t in rows.values()) * num_scored)
    function, parts = RowFunction(found.program, terms), []
    for number, (count, chunk) in enumerate(row_chunks(rows, max(1, max_elements // event))):
        pair = function(chunk, *Stream.REFIT_SCORE.key(seed, number))
        parts.append([column[:count].double() for column in pair])
    rate, lost = (torch.cat(column) for column in zip(*parts, strict=True))
    return rate, lost
