"""How far to trust an estimate: tails of weights, chains that met, scales at their bound."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.errors import PyroVaeWarning
from pyro_vae.noise import seeded
from pyro_vae.program import Rows
from pyro_vae.traces import sites_of, trace_program


def pareto_khat(log_w: Tensor) -> Tensor:
    r"""The shape k of a generalized Pareto fitted to the largest weights of each datum.

    Above 0.7 the mean of the weights, and so log p(x), is not to be trusted at this number of
    particles; below 0 the weights are bounded.

    Args:
        log_w: log importance weights, (K, B).

    Returns:
        (B,).  Exactly 0 where the weights are constant up to rounding (the proposal is the
        posterior), or all the largest are equal; nan where K is too small for a tail (fewer than 5
        weights in it), and inf where fewer than 5 weights are not zero.

    The fit is the quasi-Bayesian one of Zhang & Stephens (2009) with the weak prior of Vehtari et
    al. (2024, arXiv:1507.02646), on the min(K / 5, 3 sqrt K) largest weights.  Each column is a
    datum of its own: one fit for a whole batch would measure the batch's size.
    """
    num_particles = len(log_w)
    tail = math.ceil(min(0.2 * num_particles, 3 * math.sqrt(num_particles)))
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
    spread = largest[:, -1] - largest[:, 0]
    fitted = spread > rounding * largest[:, -1].abs().clamp_min(1.0)
    whole = fitted & (excess > 0).all(1)
    if whole.any():
        shape[whole] = _fit_generalized_pareto(excess[whole])
    for row in (fitted & ~whole).nonzero().flatten().tolist():
        above = excess[row][excess[row] > 0]  # ties with the threshold are no excess
        if len(above) < 5:
            shape[row] = float("inf") if largest[row, 0].isneginf() else 0.0
        elif above[-1] - above[0] <= 1e-12 * above[-1]:
            shape[row] = 0.0
        else:
            shape[row] = _fit_generalized_pareto(above.unsqueeze(0))[0]
    return shape


def _fit_generalized_pareto(excess: Tensor) -> Tensor:
    """Posterior mean of k for sorted excesses (B, n)."""
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
    return (n * shape + 10 * 0.5) / (n + 10)  # ten observations' worth of k = 1/2


def warn_about_divergence(history: Any, name: str = "") -> None:
    """Warn where a run of finite numbers ended far below where it began.

    Args:
        history: the data frame of a run.
        name: which of several runs it is, for the message.
    """
    if "bound" not in history or len(history) < 20:  # a few steps are no training
        return
    first, last = (float(history["bound"].iloc[i]) for i in (0, -1))
    if last < first - max(100.0, abs(first)):
        warnings.warn(
            f"{name}the bound ended at {last:,.0f} nats per datum, where it began at {first:,.0f}: "
            "training diverged, though every number is finite; lower lr, set clip, or let the "
            "first steps only accumulate, optimizer=pv.optimizers.Adagrad",
            PyroVaeWarning,
            stacklevel=3,
        )


def warn_about_tails(khat: Tensor, consequence: str) -> None:
    """Say once where weights are not to be trusted: khat above 0.7, or none at all."""
    if khat.isnan().any():
        warnings.warn(
            "with so few draws there is no khat, so nothing says how far to trust log p(x): use 25 "
            "or more",
            PyroVaeWarning,
            stacklevel=3,
        )
    bad = int((khat > 0.7).sum())
    if bad:
        warnings.warn(
            f"khat exceeds 0.7 for {bad} of {len(khat)} data: {consequence}",
            PyroVaeWarning,
            stacklevel=3,
        )


def split_rhat(draws: Tensor) -> Tensor:
    r"""How far the chains of a datum are from telling the same: 1 where they do.

    .. math:: \hat R = \sqrt{\frac{n - 1}{n} + \frac BW}

    with every chain cut into halves of n draws, B the variance of their means and W the mean of
    their variances.  Well above 1 the chains have not met, each in a mode of its own say, or are
    too short to show that they have.

    Args:
        draws: S draws of C chains of B data in J coordinates, (S, C, B, J).

    Returns:
        (B,), of the worst coordinate; nan where a half has no two draws.

    Source: Gelman & Rubin (1992); Gelman et al. (2013), section 11.4.
    """
    n = len(draws) // 2
    if n < 2:
        return draws.new_full(draws.shape[2:3], math.nan)
    halves = torch.cat([draws[:n], draws[-n:]], dim=1)  # (n, 2 C, B, J)
    ratio = halves.mean(0).var(0) / halves.var(0).mean(0)
    return ((n - 1) / n + ratio).sqrt().amax(-1)


def integrated_time(values: Tensor) -> Tensor:
    r"""How many draws of a chain say as much as one independent draw, at least 1.

    .. math:: \tau = 1 + 2 \sum_{k \ge 1} \rho_k,

    summed up to the first negative :math:`\rho_{2m} + \rho_{2m+1}`.  Chains have one mean in
    common, so that those which have not met count as correlated.

    Args:
        values: S values along C chains of B data, (S, C, B).

    Returns:
        (B,).

    Source: Geyer (1992), section 3.3.
    """
    n = len(values)
    centred = values - values.mean((0, 1))
    spectrum = torch.fft.rfft(centred, n=2 * n, dim=0)  # padded by zeros, so that no lag wraps
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * n, dim=0)[:n].sum(1)  # (S, B)
    pairs = covariance[: n // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    whole = pairs * (pairs > 0).cummin(0).values
    # Constant values have no correlation to speak of.
    return (2 * whole.sum(0) / covariance[0] - 1).nan_to_num(1.0).clamp_min(1.0)


def warn_at_floor(program: nn.Module, x: Rows) -> None:
    """Warn where an observed site's scale sits at the floor of the program's likelihood.

    There the density would grow without bound if it could (a pixel that never changes), so log p(x)
    says how low the floor is and not how good the model.
    """
    floor: Any = getattr(getattr(program, "likelihood", None), "floor", None)
    if not isinstance(floor, float):
        return
    with torch.no_grad(), seeded(0):
        _, trace = trace_program(program, x, reparameterize=False)
    for name, site in sites_of(trace).items():
        scale = getattr(getattr(site["fn"], "base_dist", site["fn"]), "scale", None)
        if not site["is_observed"] or not isinstance(scale, Tensor):
            continue
        events = scale.reshape(-1, site["fn"].event_shape.numel())
        stuck = int((events < 1.05 * floor).all(0).sum())
        if stuck:
            warnings.warn(
                f'the scale of site "{name}" is at its floor {floor:g} in {stuck} of '
                f"{events.shape[1]} dimensions for every row: log p(x) depends on the floor there; "
                "drop constant dimensions, or raise floor to the precision of the data",
                PyroVaeWarning,
                stacklevel=3,
            )
