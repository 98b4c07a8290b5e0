r"""Two layers of latents: the upper one says which lower ones belong together.

.. math::
    z_2 \sim p(z_2), \qquad
    z_1 \mid z_2 \sim N(\mu(z_2), \mathrm{diag}\, \sigma(z_2)^2), \qquad
    x \mid z_1 \sim p(x \mid z_1)

    q(z_1, z_2 \mid x) = q(z_2 \mid x) \, q(z_1 \mid x, z_2)

The guide is structured: it draws the upper layer first, as the model does, and the lower one given
it, so that the latents of a datum depend on each other in the posterior too, and each site has
its KL term in closed form where the families have one.

Sources: Rezende, Mohamed & Wierstra (2014), arXiv:1401.4082, for the model; Tomczak & Welling
(2018), arXiv:1705.07120, section 3, for this order of the guide, and for a VampPrior above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
from torch import Tensor, nn

from pyro_vae import errors, likelihoods, posteriors, priors
from pyro_vae.networks.base import shape_of
from pyro_vae.posteriors.suiting import require_fit
from pyro_vae.program.base import Program
from pyro_vae.program.parts import Part
from pyro_vae.program.rows import num_rows
from pyro_vae.program.vae import built_by_name


class HierarchicalVAE(Program):
    """A VAE with the latents "z2" above "z1".

    Args:
        prior: called as ``prior()``; returns p(z2).
        middle: called as ``middle({"z2": z2})``; returns p(z1 | z2).
        likelihood: called as ``likelihood(z1)``; returns p(x | z1).
        upper: called as ``upper(x)``; returns q(z2 | x).
        lower: called as ``lower({"x": x, "z2": z2})``; returns q(z1 | x, z2).
    """

    def __init__(
        self,
        *,
        prior: nn.Module,
        middle: nn.Module,
        likelihood: nn.Module,
        upper: nn.Module,
        lower: nn.Module,
    ) -> None:
        super().__init__()
        self.prior, self.middle, self.likelihood = prior, middle, likelihood
        self.upper, self.lower = upper, lower

    def model(self, x: Tensor) -> None:  # p(z2) p(z1 | z2) p(x | z1)
        with pyro.plate("data", num_rows(x)):
            z2 = pyro.sample("z2", self.prior())
            z1 = pyro.sample("z1", self.middle({"z2": z2}))
            pyro.sample("x", self.likelihood(z1), obs=x)

    def guide(self, x: Tensor) -> None:  # q(z2 | x) q(z1 | x, z2)
        with pyro.plate("data", num_rows(x)):
            z2 = pyro.sample("z2", self.upper(x))
            pyro.sample("z1", self.lower({"x": x, "z2": z2}))


@built_by_name()
def build(
    data_dim: int | Sequence[int],
    *,
    latent_dim: int = 20,
    upper_dim: int = 10,
    hidden_dim: int = 500,
    init_std: float | None = 0.01,
    prior: Any = None,
    likelihood: Any = None,
    upper: Any = None,
    lower: Any = None,
) -> HierarchicalVAE:
    """Give the five parts their sizes.

    Args:
        data_dim: D, or the shape of one x.
        latent_dim: J of z1, the lower layer, from which x is made.
        upper_dim: J of z2.
        hidden_dim: H of the networks.
        init_std: standard deviation of the initial weights; None is torch's own initialization.
        prior: of z2; ``priors.VampPrior(500)`` passes its pseudo-inputs through ``upper``.
        likelihood: of x; by default Bernoulli.
        upper, lower: the posteriors of z2 and of z1; by default Gaussian, ``upper`` such that it
            suits the prior.  All parts are finished, or without their sizes.

    Example:
        >>> build(64, latent_dim=4, upper_dim=2, hidden_dim=8).lower.network.inputs
        66
    """
    sizes = {
        "data_dim": shape_of("data_dim", data_dim),
        "hidden_dim": errors.whole("hidden_dim", hidden_dim),
        "init_std": init_std,
    }
    below = sizes | {"latent_dim": errors.whole("latent_dim", latent_dim)}
    above = sizes | {"latent_dim": errors.whole("upper_dim", upper_dim)}
    prior = priors.Normal() if prior is None else prior
    if upper is None:
        upper = posteriors.suited(prior.support)()
    upper = _sized(upper, above)
    prior = _sized(prior, above | {"posterior": upper})
    require_fit(upper, prior)
    return HierarchicalVAE(
        prior=prior,
        middle=_sized(priors.Conditional(), below | {"given_dim": upper_dim}),
        likelihood=_sized(likelihood or likelihoods.Bernoulli(), below),
        upper=upper,
        lower=_sized(lower or posteriors.Gaussian(), below | {"given_dim": upper_dim}),
    )


def _sized(part: Any, sizes: dict[str, Any]) -> nn.Module:
    return part.sized(**sizes) if isinstance(part, Part) else part
