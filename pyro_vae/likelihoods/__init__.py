"""Likelihoods: modules that return p(x | z).  One file a kind of data; found by listing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_vae.recording.listing import exported, names_in

if TYPE_CHECKING:  # a class in a new file needs no entry: it is found, and is Any to type checkers
    from pyro_vae.likelihoods.bernoulli import Bernoulli as Bernoulli
    from pyro_vae.likelihoods.categories import Categorical as Categorical
    from pyro_vae.likelihoods.categories import OneHotCategorical as OneHotCategorical
    from pyro_vae.likelihoods.categories import Ordinal as Ordinal
    from pyro_vae.likelihoods.continuous import Beta as Beta
    from pyro_vae.likelihoods.continuous import ContinuousBernoulli as ContinuousBernoulli
    from pyro_vae.likelihoods.continuous import Laplace as Laplace
    from pyro_vae.likelihoods.continuous import StudentT as StudentT
    from pyro_vae.likelihoods.counts import NegativeBinomial as NegativeBinomial
    from pyro_vae.likelihoods.counts import Poisson as Poisson
    from pyro_vae.likelihoods.counts import (
        ZeroInflatedNegativeBinomial as ZeroInflatedNegativeBinomial,
    )
    from pyro_vae.likelihoods.documents import Multinomial as Multinomial
    from pyro_vae.likelihoods.documents import ProdLDA as ProdLDA
    from pyro_vae.likelihoods.gaussian import Gaussian as Gaussian
    from pyro_vae.likelihoods.pixels import DiscretizedLogistic as DiscretizedLogistic


def __getattr__(name: str) -> Any:
    return exported(__name__, name)


def __dir__() -> list[str]:
    return names_in(__name__)
