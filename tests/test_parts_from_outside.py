"""Parts, and data with gaps, as strangers bring them."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv


class _Normal(pv.Prior):
    def _made(self, latent_dim: int, scale: float) -> None:
        pv.Prior.__init__(self)
        self.register_buffer("zero", torch.zeros(latent_dim))
        self.scale = scale

    def forward(self) -> Any:
        return dist.Normal(self.zero, self.scale).to_event(1)


class WithOptions(_Normal):
    def __init__(self, latent_dim: int, **options: float) -> None:
        self._made(latent_dim, options.get("scale", 1.0))


class ByPosition(_Normal):
    def __init__(self, latent_dim: int, /, scale: float = 1.0) -> None:
        self._made(latent_dim, scale)


class BehindAnother(_Normal):
    def __init__(self, scale: float, latent_dim: int, /) -> None:
        self._made(latent_dim, scale)


class WithMany(_Normal):
    def __init__(self, scale: float, *more: float, latent_dim: int) -> None:
        self._made(latent_dim, scale + sum(more))


@pytest.mark.parametrize(
    "recipe",
    [WithOptions(scale=2.0), ByPosition(scale=2.0), BehindAnother(2.0), WithMany(1.5, 0.25, 0.25)],
    ids=lambda recipe: type(recipe).__name__,
)
def test_a_recipe_keeps_options_in_every_form_that_a_constructor_may_have(recipe: Any) -> None:
    assert recipe.unsized
    prior = pv.VAE.build(torch.zeros(4, 3).bernoulli(), latent_dim=2, prior=recipe).prior
    assert (prior.scale, tuple(prior.zero.shape)) == (2.0, (2,))


def test_a_part_that_is_no_module_yet_is_refused_in_words() -> None:
    class Forgot(pv.Prior):
        def __init__(self, latent_dim: int) -> None:
            self.scale = latent_dim

    with pytest.raises(TypeError, match=r"prior is a Forgot whose __init__ calls no super\(\)"):
        pv.VAE.build(torch.ones(4, 3), latent_dim=2, prior=Forgot())


def test_gaps_beside_a_law_of_torch() -> None:
    class OfTorch(pv.Likelihood):
        def __init__(self, latent_dim: int, data_dim: int) -> None:
            super().__init__()
            self.network = torch.nn.Linear(latent_dim, data_dim)

        def forward(self, z: Tensor) -> Any:
            law = torch.distributions.Poisson(self.network(z).exp())
            return torch.distributions.Independent(law, 1)

    x = torch.full((8, 3), 2.0)
    x[1, 2] = torch.nan
    vae = pv.VAE.build(x, latent_dim=2, likelihood=OfTorch(), missing=True)
    rate = vae.likelihood.network(torch.zeros(2)).exp()
    whole = torch.distributions.Poisson(rate).log_prob(x.nan_to_num())
    law = vae._with_gaps(vae.likelihood(torch.zeros(8, 2)), "x")
    assert torch.allclose(law.log_prob(x)[1], whole[1, :2].sum())
    assert torch.allclose(law.log_prob(x)[0], whole[0].sum())


@pytest.mark.parametrize("kind", ["Categorical", "Ordinal"])
def test_codes_with_gaps_are_imputed_as_probabilities(kind: str) -> None:
    x = torch.tensor([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]]).repeat(4, 1)
    likelihood = getattr(pv.likelihoods, kind)()
    whole = pv.VAE.build(x, latent_dim=2, hidden_dim=4, likelihood=likelihood)
    x[1, 1] = torch.nan
    vae = pv.VAE.build(x, latent_dim=2, hidden_dim=4, likelihood=likelihood, missing=True)
    vae.likelihood.load_state_dict(whole.likelihood.state_dict())
    z = torch.randn(5, 2)
    assert torch.equal(pv.decode(vae, z), pv.decode(whole, z))
    shares = pv.reconstruct(vae, x)
    assert shares.shape == (12, 2, 3)
    assert torch.allclose(shares.sum(-1), torch.ones(12, 2))


def test_parts_infer_from_rows_with_gaps_too() -> None:
    x = torch.tensor([[7.0, torch.nan], [0.0, torch.nan], [torch.nan, 2.0], [torch.nan, 1.0]])
    columns = pv.likelihoods.Columns(
        {"a": (pv.likelihoods.Categorical(), 0), "b": (pv.likelihoods.Ordinal(), 1)}
    )
    vae = pv.VAE.build(x, latent_dim=2, hidden_dim=4, likelihood=columns, missing=True)
    numbers = {name: part.numbers for name, part in vae.likelihood.parts.items()}
    assert numbers == {"a": [8], "b": [3]}
    counts = torch.tensor([[4.0, torch.nan], [torch.nan, 1.0]])
    vae = pv.VAE.build(
        counts, latent_dim=2, hidden_dim=4, likelihood=pv.likelihoods.Poisson(), missing=True
    )
    rate = vae.likelihood(torch.zeros(1, 2)).mean
    assert torch.allclose(rate, torch.tensor([[4.0, 1.0]]), rtol=0.1)


def test_gaps_that_nobody_announced_say_how_to() -> None:
    x = torch.randn(8, 3)
    x[4, 1] = torch.nan
    gaussian = pv.likelihoods.Gaussian(sigmoid_mean=False)
    vae = pv.VAE.build(x, latent_dim=2, hidden_dim=4, likelihood=gaussian)
    with pytest.raises(ValueError, match=r"row 4.*pv\.VAE\.build\(\.\.\., missing=True\)"):
        pv.reconstruct(vae, x)
