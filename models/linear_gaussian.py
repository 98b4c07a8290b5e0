r"""The linear-Gaussian model: evidence, posterior and ELBO in closed form, so it judges the rest.

.. math::
    z \sim N(0, \alpha^{-1} I_J), \qquad x \mid z \sim N(W z + b, \Sigma), \qquad
    q(z \mid x) = N(A x + c, S)

Everything about x and z is Gaussian, hence known:

.. math::
    p(x) &= N(b, \alpha^{-1} W W^\top + \Sigma), \\
    p(z \mid x) &= N(\Lambda^{-1} W^\top \Sigma^{-1} (x - b),\; \Lambda^{-1}), \qquad
    \Lambda = \alpha I + W^\top \Sigma^{-1} W.

The exact posterior is linear in x with a covariance that x does not change, so the guide holds it
when S is full.  A diagonal S holds it only where Lambda is diagonal.  Elsewhere two optima differ:

* the ELBO, which minimizes KL(q || p), has the exact mean and the *conditional* variances
  1 / Lambda_jj, and stays (sum_j log Lambda_jj - log det Lambda) / 2 nats below the evidence;
* the sleep phase, which minimizes KL(p || q), has the exact mean and the *marginal* variances
  (Lambda^-1)_jj, which are never smaller.

Sources: Bishop (2006), PRML, equations (2.113)-(2.117) for evidence and posterior, section 10.1.2
for the two optima.
"""

from __future__ import annotations

import math
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.networks.mlp import positive
from pyro_vae.program.base import Program
from pyro_vae.program.vae import built_by_name

Form = Literal["isotropic", "diagonal", "full"]


class Spread(nn.Module):
    r"""A covariance that stays positive definite: L L^T with a lower triangular factor L.

    Args:
        dim: the size of the vectors.
        form: "isotropic", L = s I; "diagonal", L = diag(s); "full", any L with diagonal s.
        scale: the value of s to start from.
        floor: the least s.
    """

    def __init__(self, dim: int, form: Form, *, scale: float, floor: float = 1e-4) -> None:
        super().__init__()
        if form not in ("isotropic", "diagonal", "full"):
            raise ValueError(f'form is {form!r}, expected "isotropic", "diagonal" or "full"')
        self.dim, self.form = errors.whole("dim", dim), form
        self.floor = errors.positive("floor", floor)
        scale = errors.within("scale", scale, f"({self.floor}, inf)", "it starts above its floor")
        start = torch.full(() if form == "isotropic" else (dim,), scale)
        self.log_variance = nn.Parameter(self._log_variance(start))
        if form == "full":
            self.lower = nn.Parameter(torch.zeros(dim, dim))  # read below the diagonal only

    def _log_variance(self, scale: Tensor) -> Tensor:
        return (scale**2 - self.floor**2).log()

    def factor(self) -> Tensor:
        """L, (dim, dim)."""
        scale = positive(self.log_variance, self.floor).expand(self.dim)
        return scale.diag() + self.lower.tril(-1) if self.form == "full" else scale.diag()

    def around(self, mean: Tensor) -> dist.TorchDistribution:
        """N(mean, L L^T) for mean (..., dim)."""
        if self.form == "full":
            return dist.MultivariateNormal(mean, scale_tril=self.factor())
        return dist.Normal(mean, positive(self.log_variance, self.floor)).to_event(1)

    @torch.no_grad()
    def set(self, covariance: Tensor) -> None:
        """Take this covariance, (dim, dim).

        Raises:
            ValueError: where it is not of this form.
        """
        factor = torch.linalg.cholesky(covariance)
        scale = factor.diagonal().mean() if self.form == "isotropic" else factor.diagonal()
        if bool((scale <= self.floor).any()):
            raise ValueError(
                f"the covariance has a standard deviation of {scale.min().item():.3g}, not above "
                f"the floor {self.floor}: measure x and z in larger units"
            )
        held = factor if self.form == "full" else scale.expand(self.dim).diag()
        tolerance = torch.finfo(factor.dtype).eps ** 0.5
        if bool((held - factor).abs().max() > tolerance * scale.min()):
            raise ValueError(
                f'the covariance is not {self.form}: build the model with "full" here, or use '
                "guide_is_best() for the best diagonal guide"
            )
        self.log_variance.copy_(self._log_variance(scale))
        if self.form == "full":
            self.lower.copy_(factor.tril(-1))


class LinearGaussian(Program):
    """A linear decoder and a linear guide, both with Gaussian noise."""

    def __init__(self, weight: Tensor, *, prior_precision: float, noise: Spread, guide: Spread):
        super().__init__()
        data_dim, latent_dim = weight.shape
        self.alpha = errors.positive("prior_precision", prior_precision)
        self.weight = nn.Parameter(weight)  # W (D, J)
        self.bias = nn.Parameter(torch.zeros(data_dim))  # b (D,)
        self.noise = noise  # Sigma
        self.guide_weight = nn.Parameter(torch.zeros(latent_dim, data_dim))  # A (J, D)
        self.guide_bias = nn.Parameter(torch.zeros(latent_dim))  # c (J,)
        self.guide_noise = guide  # S

    def prior(self) -> dist.TorchDistribution:
        """p(z), in the guide's family, so that their KL has a closed form."""
        zero = torch.zeros_like(self.guide_bias)
        if self.guide_noise.form == "full":
            factor = torch.eye(len(zero), dtype=zero.dtype, device=zero.device) / self.alpha**0.5
            return dist.MultivariateNormal(zero, scale_tril=factor)
        return dist.Normal(zero, self.alpha**-0.5).to_event(1)

    def model(self, x: Tensor) -> None:  # p(z) p(x | z)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            mean = z @ self.weight.T + self.bias  # (..., B, D)
            pyro.sample("x", self.noise.around(mean), obs=x)

    def guide(self, x: Tensor) -> None:  # q(z | x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.guide_noise.around(self.guide_mean(x)))

    def guide_mean(self, x: Tensor) -> Tensor:
        """A x + c, (B, J)."""
        return x @ self.guide_weight.T + self.guide_bias

    # --- exact answers --------------------------------------------------------------------------

    def _scaled_weight(self) -> Tensor:  # Sigma^-1 W, (D, J)
        return torch.cholesky_solve(self.weight, self.noise.factor())

    def posterior_precision(self) -> Tensor:
        """Lambda = alpha I + W^T Sigma^-1 W, (J, J)."""
        gram = self.weight.T @ self._scaled_weight()
        return gram + self.alpha * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """The exact p(z | x), batch shape (B,).  PRML (2.116), (2.117)."""
        precision = self.posterior_precision()
        gain = torch.linalg.solve(precision, self._scaled_weight().T)  # (J, D)
        return dist.MultivariateNormal((x - self.bias) @ gain.T, precision_matrix=precision)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), (B,) nats.  PRML (2.115)."""
        noise = self.noise.factor()
        covariance = self.weight @ self.weight.T / self.alpha + noise @ noise.T
        return dist.MultivariateNormal(self.bias, covariance).log_prob(x)

    def elbo(self, x: Tensor) -> Tensor:
        """E_q log p(x | z) - KL(q || p(z)) of the guide as it is, (B,) nats."""
        mean, factor = self.guide_mean(x), self.guide_noise.factor()
        covariance = factor @ factor.T
        fit = self.noise.around(mean @ self.weight.T + self.bias).log_prob(x)
        # E_q (z - m)^T W^T Sigma^-1 W (z - m) = tr(W^T Sigma^-1 W S)
        blur = (self.weight.T @ self._scaled_weight() * covariance).sum()
        latent_dim = len(covariance)
        kl = self.alpha * (covariance.trace() + mean.square().sum(-1)) - latent_dim
        kl = kl - latent_dim * math.log(self.alpha) - 2 * factor.diagonal().log().sum()
        return fit - (blur + kl) / 2

    def diagonal_gap(self) -> Tensor:
        """Nats by which the best diagonal guide misses the evidence, the same for every x."""
        precision = self.posterior_precision()
        return (precision.diagonal().log().sum() - precision.logdet()) / 2

    @torch.no_grad()
    def guide_is_exact_posterior(self) -> None:
        """Set q(z | x) to p(z | x).

        Raises:
            ValueError: for a diagonal guide where the posterior is not diagonal.
        """
        self._set_guide(self.posterior_precision().inverse())

    @torch.no_grad()
    def guide_is_best(self) -> None:
        """Set q(z | x) to its maximum of the ELBO: for a diagonal one, variances 1 / Lambda_jj."""
        precision = self.posterior_precision()
        if self.guide_noise.form != "full":
            precision = precision.diagonal().diag()
        self._set_guide(precision.inverse())

    def _set_guide(self, covariance: Tensor) -> None:
        self.guide_noise.set(covariance)
        gain = torch.linalg.solve(self.posterior_precision(), self._scaled_weight().T)
        self.guide_weight.copy_(gain)
        self.guide_bias.copy_(-gain @ self.bias)


@built_by_name()
def build(
    data_dim: int,
    *,
    latent_dim: int = 2,
    prior_precision: float = 1.0,
    noise: Form = "isotropic",
    posterior: Literal["diagonal", "full"] = "diagonal",
    noise_scale: float = 1.0,
    weight: Tensor | None = None,
) -> LinearGaussian:
    """A linear-Gaussian model whose guide starts at the prior.

    Args:
        data_dim: D.
        latent_dim: J.
        prior_precision: alpha of the prior N(0, I / alpha).
        noise: the form of Sigma.
        posterior: the form of the guide's S.
        noise_scale: Sigma starts as noise_scale^2 I, in units of x.
        weight: the value of W to start from, (D, J); default: independent N(0, 1 / J) entries, so
            that each entry of x starts with about one unit of variance from z.

    Example:
        >>> oracle = build(3, latent_dim=2, posterior="full")
        >>> x = torch.zeros(4, 3)
        >>> oracle.guide_is_exact_posterior()
        >>> torch.allclose(oracle.elbo(x), oracle.log_evidence(x))
        True
    """
    data_dim = errors.whole("data_dim", data_dim)
    latent_dim = errors.whole("latent_dim", latent_dim)
    prior_precision = errors.positive("prior_precision", prior_precision)
    noise_scale = errors.positive("noise_scale", noise_scale)
    if posterior not in ("diagonal", "full"):
        raise ValueError(f'posterior is {posterior!r}, expected "diagonal" or "full"')
    if weight is None:
        weight = torch.randn(data_dim, latent_dim) / latent_dim**0.5
    elif weight.shape != (data_dim, latent_dim):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, expected (D, J) = ({data_dim}, {latent_dim})"
        )
    return LinearGaussian(
        weight.detach().clone(),
        prior_precision=prior_precision,
        noise=Spread(data_dim, noise, scale=noise_scale),
        guide=Spread(latent_dim, posterior, scale=prior_precision**-0.5),
    )
