r"""MNIST: a Bernoulli decoder and a Gaussian encoder, one hidden layer each.

.. math::
    z \sim N(0, \alpha^{-1} I), \qquad
    x \mid z \sim \prod_d \mathrm{Bernoulli}(y_d(z)), \qquad
    q(z \mid x) = N(\mu(x), \mathrm{diag}\, \sigma(x)^2)

``model`` draws z from the prior and x from ``likelihood(z)``, ``guide`` draws z from
``posterior(x)``: both stand in :class:`~pyro_vae.program.VAE` (``pyro_vae/program/vae.py``), and
this file gives the three parts their sizes.

Source: Kingma & Welling (2014), section 3 and appendix C.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pyro_vae import errors, likelihoods, posteriors, priors
from pyro_vae.models.vae import sized_parts
from pyro_vae.program.vae import VAE, built_by_name


class BernoulliVAE(VAE):
    """Binary images from Gaussian latents."""


@built_by_name(
    prior=("prior_precision",),
    likelihood=("soft_targets",),
    posterior=("posterior_precision",),
)
def build(
    data_dim: int | Sequence[int],
    *,
    latent_dim: int = 20,
    hidden_dim: int = 500,
    soft_targets: bool = False,
    prior_precision: float = 1.0,
    posterior_precision: float | None = None,
    init_std: float | None = 0.01,
    prior: nn.Module | None = None,
    likelihood: nn.Module | None = None,
    posterior: nn.Module | None = None,
) -> BernoulliVAE:
    """Give the three parts their sizes.

    Args:
        data_dim: D, the number of pixels, or the shape of an image.
        latent_dim: J.
        hidden_dim: H, of the encoder and of the decoder.
        soft_targets: accept grey pixels as the paper did; no density of x (see ``likelihoods``).
        prior_precision: alpha of the prior N(0, I / alpha).
        posterior_precision: None learns sigma(x); a number beta fixes the variance at 1 / beta.
        init_std: standard deviation of the initial weights; None is torch's own initialization.
        prior, likelihood, posterior: parts in place of these, finished or without their sizes.

    Example:
        >>> build(64, latent_dim=2, hidden_dim=8).posterior.network[0].in_features
        64
    """
    prior_precision = errors.positive("prior_precision", prior_precision)
    if posterior_precision is not None:
        posterior_precision = errors.positive("posterior_precision", posterior_precision)
    parts = sized_parts(
        data_dim,
        latent_dim=latent_dim,
        hidden_dim=hidden_dim,
        prior=prior or priors.StandardNormal(precision=prior_precision),
        likelihood=likelihood or likelihoods.Bernoulli(soft_targets=soft_targets),
        posterior=posterior or posteriors.Gaussian(precision=posterior_precision),
        init_std=init_std,
    )
    return BernoulliVAE(**parts)
