r"""The Bernoulli-logistic latent variable model: no closed form, quadrature for one or two latents.

.. math::
    z \sim N(0, \alpha^{-1} I_J), \qquad
    x_d \mid z \sim \mathrm{Bernoulli}(\sigma(w_d \cdot z + b_d)), \quad d = 1, \dots, D

The D observations of a datum share one z.  That makes the evidence

.. math:: p(x) = \int N(z; 0, \alpha^{-1} I) \prod_d \sigma((2 x_d - 1)(w_d \cdot z + b_d)) \, dz

intractable.  With a single observation and no bias it is not: by the symmetry of z, p(x) = 1/2
for every w and alpha, and the posterior differs from the prior along w alone.

For J <= 2 Gauss-Hermite quadrature over the prior gives evidence and posterior moments to many
digits, so that the model is an oracle like the linear-Gaussian one, with a likelihood that is not
conjugate.  The guide is the paper's Gaussian MLP.
"""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import errors, posteriors, priors
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.program.base import Program
from pyro_vae.program.vae import built_by_name

MAX_NODES = 256  # numpy's nodes overflow soon after


class LogisticLVM(Program):
    """Binary vectors from a linear map of Gaussian latents."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        prior: priors.StandardNormal,
        encoder: posteriors.Gaussian,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)  # (D, J)
        self.bias = nn.Parameter(bias)  # (D,)
        self.prior = prior
        self.encoder = encoder

    def model(self, x: Tensor) -> None:  # p(z) prod_d p(x_d | z)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            logits = z @ self.weight.T + self.bias  # (..., B, D)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:  # q(z | x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))

    # --- exact answers --------------------------------------------------------------------------

    def log_evidence(self, x: Tensor, *, nodes: int = 64) -> Tensor:
        """log p(x) by quadrature, (B,) nats.

        Args:
            x: zeros and ones, (B, D).
            nodes: Gauss-Hermite nodes for each latent.

        Raises:
            ValueError: for more than two latents.

        Warns:
            PyroVaeWarning: where half the nodes give another answer, by more than 1e-3 nats.
        """
        nodes = errors.whole("nodes", nodes, most=MAX_NODES)
        value = self._log_joint(x, nodes)[1].logsumexp(0)
        coarse = self._log_joint(x, (nodes + 1) // 2)[1].logsumexp(0)
        error = (value - coarse).detach().abs().max().item()
        if error > 1e-3:
            warnings.warn(
                f"log p(x) moves by {error:.1e} nats between {nodes // 2} and {nodes} quadrature "
                "nodes, because the posterior is much narrower than the prior: pass "
                f"nodes={2 * nodes}, up to {MAX_NODES}, or use pv.log_evidence",
                PyroVaeWarning,
                stacklevel=2,
            )
        return value.to(x.dtype)

    def posterior_moments(self, x: Tensor, *, nodes: int = 64) -> tuple[Tensor, Tensor]:
        """Mean (B, J) and covariance (B, J, J) of p(z | x) by quadrature.

        Arguments and errors are those of :meth:`log_evidence`.
        """
        z, log_joint = self._log_joint(x, errors.whole("nodes", nodes, most=MAX_NODES))
        weight = log_joint.softmax(0)  # (M, B)
        mean = weight.T @ z
        centred = z.unsqueeze(1) - mean  # (M, B, J)
        covariance = torch.einsum("mb,mbi,mbj->bij", weight, centred, centred)
        return mean.to(x.dtype), covariance.to(x.dtype)

    def _log_joint(self, x: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
        """All nodes z (M, J), and log p(x | z) + log of the prior's weight there (M, B)."""
        latent_dim = self.weight.shape[1]
        if latent_dim > 2:
            raise ValueError(
                f"quadrature over {latent_dim} latents needs nodes^{latent_dim} points, and this "
                "one stops at 2: use pv.log_evidence, which samples"
            )
        # The probabilists' rule: sum_m v_m f(t_m) = E f(t), t ~ N(0, 1), with sum_m v_m = 1.
        t, v = np.polynomial.hermite_e.hermegauss(nodes)
        log_v = np.log(v / v.sum())
        grid = list(itertools.product(range(nodes), repeat=latent_dim))
        z = torch.tensor(t[grid] / self.prior.precision**0.5, device=x.device)  # (M, J)
        log_weight = torch.tensor(log_v[grid].sum(-1), device=x.device)  # (M,)
        logits = z @ self.weight.double().T + self.bias.double()  # (M, D)
        # log p(x | z) = sum_d x_d l_d - log(1 + exp(l_d))
        log_lik = logits @ x.double().T - nn.functional.softplus(logits).sum(-1, keepdim=True)
        return z, log_lik + log_weight.unsqueeze(-1)


@built_by_name()
def build(
    data_dim: int,
    *,
    latent_dim: int = 1,
    hidden_dim: int = 32,
    prior_precision: float = 1.0,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> LogisticLVM:
    """A Bernoulli-logistic model with a Gaussian MLP as its guide.

    Args:
        data_dim: D, observations of a datum.
        latent_dim: J.
        hidden_dim: H of the guide.
        prior_precision: alpha of the prior N(0, I / alpha).
        weight: the value of w to start from, (D, J); default: independent N(0, 1) entries.
        bias: the value of b to start from, (D,); default: zeros.

    Example:
        >>> coin = build(1)
        >>> coin.log_evidence(torch.ones(1, 1)).exp().item()  # any w
        0.5
    """
    data_dim = errors.whole("data_dim", data_dim)
    latent_dim = errors.whole("latent_dim", latent_dim)
    prior_precision = errors.positive("prior_precision", prior_precision)
    prior = priors.StandardNormal(latent_dim, prior_precision)
    encoder = posteriors.Gaussian(data_dim, latent_dim, hidden_dim)
    weight = torch.randn(data_dim, latent_dim) if weight is None else weight
    bias = torch.zeros(data_dim) if bias is None else bias
    for name, value, shape in (
        ("weight", weight, (data_dim, latent_dim)),
        ("bias", bias, (data_dim,)),
    ):
        if value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {shape}")
    return LogisticLVM(weight.detach().clone(), bias.detach().clone(), prior=prior, encoder=encoder)
