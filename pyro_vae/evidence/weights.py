"""Log weights as evidence: log p(x), its error, and how far to trust both."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.errors import PyroVaeWarning, users_line
from pyro_vae.evidence.elpd import to_elpd
from pyro_vae.evidence.measured import Measured

NOTICEABLE = 0.05  # of the sum of weights: what a few draws may carry before it hangs on them
MORE = "; pv.diagnose(program, x) and docs/diagnosis.md say more"
ENOUGH = 1000  # draws from which khat sees most tails
FEW = 100  # and below which it passes what it should not


def pareto_khat(log_w: Tensor) -> Tensor:
    r"""The shape k of a generalized Pareto fitted to the largest weights of each datum.

    Above 0.7 the mean of the weights, and so log p(x), is not to be trusted at this number of
    particles; below 0 the weights are bounded.

    It sees the tails of what was drawn.  A tail has to be met first: of 25 draws it passed 42 % of
    data whose log p(x) was 1.7 nats too low on average, of about 1000 it is worth something.  Nor
    does it see a value of a discrete latent that was never drawn: the weights of the others are
    then as even as if there were none.  And leaving out the data with a large khat moves a mean
    over data, because they are not like the others.

    Args:
        log_w: log importance weights, (K, B).

    Returns:
        (B,).  Exactly 0 where the weights are constant up to rounding (the proposal is the
        posterior), or few values are shared by all weights that matter, as with a discrete latent;
        inf where fewer than 5 draws carry more than 5 % of the sum and the others are tied, or
        are zero; nan where K is too small for a tail (fewer than 5 weights in it).

    The fit is the quasi-Bayesian one of Zhang & Stephens (2009) with the weak prior of Vehtari et
    al. (2024, arXiv:1507.02646), on the min(K / 5, 3 sqrt K) largest weights.  Each column is a
    datum of its own: one fit for a whole batch would measure the batch's size.
    """
    tail = tail_length(len(log_w))
    # What densities of this precision differ by without meaning it.
    rounding = 64 * torch.finfo(log_w.dtype).eps if log_w.is_floating_point() else 0.0
    log_w = log_w.double()
    if tail < 5:
        return torch.full_like(log_w[0], float("nan"))
    # (B, tail + 1), ascending; relative to the largest, which does not change the shape.
    largest = log_w.topk(tail + 1, dim=0).values.flip(0).T
    weights = (largest - largest[:, -1:]).exp()
    excess = weights[:, 1:] - weights[:, :1]
    shape = torch.zeros_like(log_w[0])
    spread = largest - largest[:, :1]
    noise = (rounding * largest[:, -1:].abs()).clamp_min(rounding)  # of a log weight
    fitted = spread[:, -1] > noise[:, 0]
    # Draws of one value of a discrete latent differ by rounding, and are one weight.
    tied = (spread[:, 1:] <= noise).sum(1)
    whole = fitted & (excess > 0).all(1) & (tied < 0.1 * tail)
    if whole.any():
        shape[whole] = _fit_generalized_pareto(excess[whole])[0]
    total = (log_w - largest[:, -1]).exp().sum(0)  # as the weights: relative to the largest
    for row in (fitted & ~whole).nonzero().flatten().tolist():
        above = spread[row, 1:] > noise[row]  # ties with the threshold are no excess
        shape[row] = _of_ties(excess[row, above], weights[row, 1:][above], total[row], noise[row])
    return shape


def _of_ties(excess: Tensor, weights: Tensor, total: Tensor, noise: Tensor) -> Tensor | float:
    """Of one datum many of whose largest weights are equal: from those above that, ascending."""
    if bool(weights.sum() <= NOTICEABLE * total):
        return 0.0
    if len(excess) < 5:
        return math.inf
    if bool(weights[-1].log() - weights[0].log() <= noise):
        return 0.0
    return _fit_generalized_pareto(excess.unsqueeze(0))[0][0]


def tail_length(num_particles: int) -> int:
    """M, how many of K weights the fit is to."""
    return math.ceil(min(0.2 * num_particles, 3 * math.sqrt(num_particles)))


def fitted_tail(log_w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The M largest weights of each datum in ascending order, and the Pareto law fitted to them.

    Args:
        log_w: log weights whose largest is zero, (K, B), float64.

    Returns:
        Their numbers (M, B), the log of the threshold (B,), and shape and scale (B,).
    """
    largest, order = log_w.topk(tail_length(len(log_w)) + 1, dim=0)
    threshold = largest[-1]
    excess = (largest[:-1].flip(0).exp() - threshold.exp()).T
    return order[:-1].flip(0), threshold, *_fit_generalized_pareto(excess)


def _fit_generalized_pareto(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean of k for sorted excesses (B, n), and the scale that goes with it."""
    n = excess.shape[1]
    grid = 30 + int(math.sqrt(n))
    steps = torch.arange(1, grid + 1, dtype=excess.dtype, device=excess.device)
    quartile = excess[:, int(n / 4 + 0.5) - 1, None]
    # Zhang & Stephens (2009), section 4: b = k / sigma on a grid of quantiles of its prior.
    b = 1 / excess[:, -1:] + (1 - (grid / (steps - 0.5)).sqrt()) / (3 * quartile)  # (B, grid)
    k = torch.log1p(-b[:, :, None] * excess[:, None, :]).mean(-1)  # profile estimate of k
    log_likelihood = n * ((-b / k).log() - k - 1)
    posterior = log_likelihood.softmax(-1)
    mean_b = (b * posterior).sum(-1, keepdim=True)
    shape = torch.log1p(-mean_b * excess).mean(-1)
    scale = -shape / mean_b.squeeze(-1)
    return (n * shape + 10 * 0.5) / (n + 10), scale  # ten observations' worth of k = 1/2


def warn_about_tails(khat: Tensor, consequence: str, num_draws: int = ENOUGH) -> None:
    """Say once where weights are not to be trusted: khat above 0.7, of few draws, or none."""
    if khat.isnan().any():
        warnings.warn(
            "with so few draws there is no khat, so nothing says how far to trust log p(x): use "
            f"about {ENOUGH}",
            PyroVaeWarning,
            stacklevel=users_line(),
        )
    elif num_draws < FEW:
        warnings.warn(
            f"khat of {num_draws} draws does not see tails, so log p(x) may be nats too low where "
            f"it is small: use about {ENOUGH}",
            PyroVaeWarning,
            stacklevel=users_line(),
        )
    bad = int((khat > 0.7).sum())
    if bad:
        warnings.warn(
            f"khat exceeds 0.7 for {bad} of {len(khat)} data: {consequence}{MORE}",
            PyroVaeWarning,
            stacklevel=users_line(),
        )


MOST_RHAT = 1.1  # of chains that are taken to have met


class Evidence(NamedTuple):
    """log p(x) per datum with what is known of its error; every field is (N,), float64.

    Attributes:
        value: the estimate of log p(x), nats.
        standard_error: of ``value``, nats, by the delta method.  It never exceeds 1, whatever the
            error is: that is what weights give of which one is all.  Near 1, and where khat is
            above 0.7, it says "unknown" and not "a nat".  (Of appendix D it may be larger, where
            ``lower`` contradicts ``value``.)
        ess: effective number of the particles, (sum w)^2 / sum w^2; those drawn from the prior
            beside an "hmc" proposal count too.
        khat: Pareto shape of the weights; above 0.7 value and standard error are not to be
            trusted.  It takes about 1000 draws to see tails, and does not see values of a discrete
            latent that were never drawn.  Data that pass are not like those that do not: a mean
            over them alone is biased, as a rule downward, because a datum whose tail was met is
            left out and one whose tail was not stays.
        lower: a number whose expectation is at most log p(x).
        upper: a number whose expectation is at least log p(x), *given chains that have
            converged*; inf where the method gives none.
        rhat: how far the chains of a datum are from telling the same; above 1.1 they have not
            met or are too short.  Appendix D averages their draws, so value, ``upper`` and khat
            may all be wrong then.  Importance sampling weighs what they found, and needs chains
            that have met only where its proposal leaves a part of that out; elsewhere this is 1.
            inf where the search for modes was given up while it still found some; nan where no
            chains were run.
    """

    value: Tensor
    standard_error: Tensor
    ess: Tensor
    khat: Tensor
    lower: Tensor
    upper: Tensor
    rhat: Tensor
    measured: Measured | None = None

    def columns(self) -> dict[str, Tensor]:
        """What there is of each datum, by name."""
        return {name: column for name, column in self._asdict().items() if name != "measured"}

    def mean(self) -> float:
        """The average over data, nats per datum."""
        return float(self.value.mean())

    def mean_standard_error(self) -> float:
        """Of the mean over these data, for more data like them; nan of a single one."""
        number = len(self.value)
        return float(self.value.std()) / math.sqrt(number) if number > 1 else math.nan

    def to_arviz(self, dim: str = "datum") -> Any:
        """An ELPD object for ArviZ, of either line, for its ``compare`` and the plots thereof.

        ``elpd_i`` is log p(x_i) and ``pareto_k`` our khat.  Stacking, which ``az.compare`` does by
        default, exponentiates log p(x_i): beyond 700 nats that is 0 or infinite, so pass
        ``method="BB-pseudo-BMA"`` for images.  ``pv.compare_evidence`` needs no weights and refuses
        what is not comparable.

        Args:
            dim: what the dimension of the data is called.
        """
        draws = 1 if self.measured is None else self.measured.draws
        return to_elpd(self.value, self.khat, draws, dim)

    def __repr__(self) -> str:
        rows, parts = len(self.value), [f"mean {self.mean():.3f} nats"]
        parts.append(f"standard error over data {self.mean_standard_error():.3f}")
        if bool((self.upper.isfinite() & (self.lower < self.upper)).any()):
            bounds = float(self.lower.mean()), float(self.upper.mean())
            parts.append("between {:.3f} and {:.3f}".format(*bounds))
        if not self.ess.isnan().all():
            bad = int((~(self.khat <= 0.7)).sum())  # nan is no good sign
            parts.append(f"median ESS {float(self.ess.median()):.1f}")
            if not self.khat.isnan().all():
                parts.append(f"khat not below 0.7 for {bad} of {rows} data")
        if not self.rhat.isnan().all():
            apart = int((self.rhat > MOST_RHAT).sum())
            parts.append(f"R-hat above {MOST_RHAT} for {apart}")
        said = "" if self.measured is None else f"; {self.measured}"
        return f"Evidence({', '.join(parts)}{said})"


def from_log_weights(log_w: Tensor, stratum: Tensor | None = None) -> Evidence:
    """Evidence from log weights (K, B) of a normalized proposal.

    Args:
        log_w: over the density of the whole proposal, where it is a mixture.
        stratum: which part of the mixture a draw is of, (K, B), where each has a fixed number of
            draws; the standard error then counts the spread within parts alone.
    """
    khat = pareto_khat(log_w)  # in the precision that the weights were computed in
    log_w = log_w.double()
    num_particles = len(log_w)
    total = log_w.logsumexp(0)
    value = total - math.log(num_particles)
    ess = (2 * total - (2 * log_w).logsumexp(0)).exp()
    # Var(mean w) / mean(w)^2; the delta method makes it that of the log.
    if stratum is None or num_particles == 1:
        # = (K / ESS - 1) / (K - 1)
        relative_variance = (num_particles / ess - 1).clamp_min(0) / max(num_particles - 1, 1)
    else:
        relative_variance = _within(stratum, (log_w - total).exp())
    return Evidence(
        value=value,
        standard_error=relative_variance.sqrt()
        if num_particles > 1
        else torch.full_like(value, float("nan")),
        ess=ess,
        khat=khat,
        lower=value,
        upper=torch.full_like(value, float("inf")),
        rhat=torch.full_like(value, float("nan")),
    )


def _within(stratum: Tensor, shares: Tensor) -> Tensor:
    """Variance of a sum of weights with fixed numbers of draws in each stratum, (B,).

    A stratum of one draw has no spread to be seen: it counts with the square of its weight.
    """
    result = torch.zeros_like(shares[0])
    for number in range(int(stratum.max()) + 1):
        mine = stratum == number
        n = mine.sum(0)
        own = torch.where(mine, shares, 0.0)
        centred = torch.where(mine, shares - own.sum(0) / n.clamp_min(1), 0.0)
        squares = torch.where(n > 1, centred.square().sum(0), own.square().sum(0))
        result = result + squares * n / (n - 1).clamp_min(1)
    return result


def first_rows(evidence: Evidence, count: int) -> Evidence:
    """Of a chunk that repeats its last row, those that count."""
    columns: dict[str, Any] = {n: column[:count] for n, column in evidence.columns().items()}
    return evidence._replace(**columns)


def concatenated(parts: list[Evidence]) -> Evidence:
    """Evidence of all rows from that of their chunks."""
    tables = [part.columns().values() for part in parts]
    columns: list[Any] = [torch.cat(column) for column in zip(*tables, strict=True)]
    return Evidence(*columns)
