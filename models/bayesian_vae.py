r"""Full variational Bayes: the decoder's weights are latents too, shared by all data.

.. math::
    \theta \sim N(0, I), \qquad z_n \sim N(0, I), \qquad x_n \mid z_n \sim p_\theta(x \mid z_n), \\
    q(\theta, z_{1:N} \mid x_{1:N}) = N(\theta; m, \mathrm{diag}\, s^2) \prod_n q(z_n \mid x_n)

One draw of the weights serves a minibatch of B rows, and the local terms count N / B times; with
f_n as in (21), the bound of *all* N data is estimated by the minibatch's mean of

.. math::
    f_n = N \big[\log p_\theta(x_n \mid z_n) + \log p(z_n) - \log q(z_n \mid x_n)\big]
        + \log p(\theta) - \log q(\theta).

* ``AEVB("A")`` is the estimator (22), and one of its steps at B = 1 is a draw of algorithm 2;
* ``AEVB("B")`` is (24): KL(q(z | x) || p(z)) and KL(q(theta) || p(theta)) in closed form.  It has
  less variance where the guide is wide beside the posterior, as it is when training starts.

What is reported is per datum: the bound of all data, divided by N.  A likelihood's own parameters
are the means m, so s = 0 would leave the plain VAE; ``pv.fit``'s ``weight_prior`` would count their
prior twice.

Source: Kingma & Welling (2014), section 2.2 and appendix F.  Departures: the paper writes L draws
of (x, z, theta); here the rows of a minibatch share their theta.  It leaves the initial s open.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyro_vae import errors, likelihoods, posteriors, priors
from pyro_vae.models.vae import sized_parts
from pyro_vae.networks.mlp import positive
from pyro_vae.program.rows import Rows, num_rows, observed_rows
from pyro_vae.program.vae import VAE, built_by_name


class BayesianVAE(VAE):
    """A variational auto-encoder whose likelihood has uncertain weights.

    Each parameter of ``likelihood`` that requires a gradient becomes a global latent, the site
    ``"likelihood.<its name>"``: a priori N(0, I), in the guide Gaussian around its value.

    Args:
        num_data: N, the data that share the weights.
        prior, likelihood, posterior: as in :class:`~pyro_vae.program.VAE`.
        weight_std: the standard deviation s of each weight in the guide, to start from.
        floor: the least s.
    """

    def __init__(
        self,
        *,
        num_data: int,
        prior: nn.Module,
        likelihood: nn.Module,
        posterior: nn.Module,
        weight_std: float = 0.05,
        floor: float = 1e-4,
    ) -> None:
        super().__init__(prior=prior, likelihood=likelihood, posterior=posterior)
        why = "of data that share the weights, the rows of the training data: num_data=len(x)"
        self.num_data = errors.whole("num_data", num_data, why=why)
        self.floor = floor = errors.positive("floor", floor)
        weight_std = errors.within("weight_std", weight_std, f"({floor}, inf)", "above the floor")
        uncertain = [(n, p) for n, p in likelihood.named_parameters() if p.requires_grad]
        if not uncertain:
            raise ValueError(
                f"{type(likelihood).__name__} has no parameter that requires a gradient, so there "
                "is nothing to be uncertain about: pass it to a plain pv.VAE"
            )
        start = 2 * math.log(weight_std) + math.log1p(-((floor / weight_std) ** 2))
        self.log_variance = nn.ParameterDict(  # torch allows no dots in a parameter's name
            {name.replace(".", "/"): torch.full_like(p, start) for name, p in uncertain}
        )

    def model(self, x: Rows) -> None:  # p(theta) prod_n p(z_n) p(x_n | z_n, theta)
        theta = {
            name: pyro.sample(f"likelihood.{name}", _normal(torch.zeros_like(mean), 1.0))
            for name, (mean, _) in self._moments().items()
        }
        with self._data(x):
            z = pyro.sample("z", self.prior())
            law = functional_call(self.likelihood, theta, (z,))
            pyro.sample("x", law, obs=observed_rows(x))

    def guide(self, x: Rows) -> None:  # q(theta) prod_n q(z_n | x_n)
        for name, (mean, std) in self._moments().items():
            pyro.sample(f"likelihood.{name}", _normal(mean, std))
        with self._data(x):
            pyro.sample("z", self.posterior(x))

    def _data(self, x: Rows) -> pyro.plate:
        return pyro.plate("data", self.num_data, subsample_size=num_rows(x))

    def _moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and spread of each weight in the guide, by its name in the likelihood."""
        means = dict(self.likelihood.named_parameters())
        return {
            name: (means[name], positive(log_variance, self.floor))
            for key, log_variance in self.log_variance.items()
            for name in [key.replace("/", ".")]
        }


def _normal(mean: Tensor, std: Tensor | float) -> dist.TorchDistribution:
    return dist.Normal(mean, std).to_event(mean.dim())


@built_by_name()
def build(
    data_dim: int,
    *,
    num_data: int,
    latent_dim: int = 20,
    hidden_dim: int = 500,
    soft_targets: bool = False,
    prior_precision: float = 1.0,
    weight_std: float = 0.05,
    init_std: float | None = 0.01,
    prior: nn.Module | None = None,
    likelihood: nn.Module | None = None,
    posterior: nn.Module | None = None,
) -> BayesianVAE:
    """The Bernoulli VAE of ``bernoulli_vae``, with a posterior over the decoder's weights.

    Args:
        data_dim: D, the number of pixels.
        num_data: N, the rows of the training data.
        latent_dim: J.
        hidden_dim: H, of the encoder and of the decoder.
        soft_targets: accept grey pixels as the paper did; no density of x (see ``likelihoods``).
        prior_precision: alpha of the prior N(0, I / alpha) of z; that of the weights is N(0, I).
        weight_std: standard deviation of each weight in the guide, to start from.
        init_std: of the weights' initial means; None is torch's own initialization.
        prior, likelihood, posterior: parts in place of these, finished or without their sizes; the
            parameters of any likelihood become latents.

    Example:
        >>> vae = build(64, num_data=1000, latent_dim=2, hidden_dim=8)
        >>> sorted(vae.log_variance)
        ['network/0/bias', 'network/0/weight', 'network/2/bias', 'network/2/weight']
    """
    prior_precision = errors.positive("prior_precision", prior_precision)
    parts = sized_parts(
        data_dim,
        latent_dim=latent_dim,
        hidden_dim=hidden_dim,
        prior=prior or priors.StandardNormal(precision=prior_precision),
        likelihood=likelihood or likelihoods.Bernoulli(soft_targets=soft_targets),
        posterior=posterior or posteriors.Gaussian(),
        init_std=init_std,
    )
    del parts["missing"]
    return BayesianVAE(num_data=num_data, weight_std=weight_std, **parts)
