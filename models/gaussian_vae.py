r"""Frey Face: a Gaussian decoder with a sigmoid mean and a learnt variance per pixel.

.. math::
    z \sim N(0, \alpha^{-1} I), \qquad
    x \mid z \sim N(\mathrm{sigmoid}(m(z)), \mathrm{diag}\, s(z)^2), \qquad
    q(z \mid x) = N(\mu(x), \mathrm{diag}\, \sigma(x)^2)

The density is over all of R^D, so its value depends on the scale of the pixels: dividing by 256
in place of 255 moves the bound of 560 pixels by 560 log(256 / 255) = 2.2 nats.

``model`` draws z from the prior and x from ``likelihood(z)``, ``guide`` draws z from
``posterior(x)``: both stand in :class:`~pyro_vae.program.VAE` (``pyro_vae/program/vae.py``), and
this file gives the three parts their sizes.

Source: Kingma & Welling (2014), section 5 and appendix C.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pyro_vae import errors, likelihoods, posteriors, priors
from pyro_vae.models.vae import sized_parts
from pyro_vae.program.vae import VAE, built_by_name


class GaussianVAE(VAE):
    """Grey images, or any real vectors, from Gaussian latents."""


@built_by_name(
    prior=("prior_precision",),
    likelihood=("sigmoid_mean", "floor"),
    posterior=("posterior_precision",),
)
def build(
    data_dim: int | Sequence[int],
    *,
    latent_dim: int = 10,
    hidden_dim: int = 200,
    sigmoid_mean: bool = True,
    floor: float = 1e-3,
    prior_precision: float = 1.0,
    posterior_precision: float | None = None,
    init_std: float | None = 0.01,
    prior: nn.Module | None = None,
    likelihood: nn.Module | None = None,
    posterior: nn.Module | None = None,
) -> GaussianVAE:
    """Give the three parts their sizes.

    Args:
        data_dim: D, the number of pixels, or the shape of an image.
        latent_dim: J.
        hidden_dim: H, of the encoder and of the decoder.
        sigmoid_mean: keep the mean in (0, 1), as images are; False for other data, of which
            ``check``, ``fit`` and evidence warn.
        floor: the least standard deviation of a pixel, in units of x.
        prior_precision: alpha of the prior N(0, I / alpha).
        posterior_precision: None learns sigma(x); a number beta fixes the variance at 1 / beta.
        init_std: standard deviation of the initial weights; None is torch's own initialization.
        prior, likelihood, posterior: parts in place of these, finished or without their sizes.
    """
    prior_precision = errors.positive("prior_precision", prior_precision)
    if posterior_precision is not None:
        posterior_precision = errors.positive("posterior_precision", posterior_precision)
    parts = sized_parts(
        data_dim,
        latent_dim=latent_dim,
        hidden_dim=hidden_dim,
        prior=prior or priors.StandardNormal(precision=prior_precision),
        likelihood=likelihood or likelihoods.Gaussian(sigmoid_mean=sigmoid_mean, floor=floor),
        posterior=posterior or posteriors.Gaussian(precision=posterior_precision),
        init_std=init_std,
    )
    return GaussianVAE(**parts)
