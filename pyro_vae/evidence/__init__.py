"""log p(x): estimates that say how far to trust them."""

from pyro_vae.evidence.bound import elbo
from pyro_vae.evidence.chi_square import ChiSquareBound, chi_square_bound
from pyro_vae.evidence.comparing import compare_evidence
from pyro_vae.evidence.estimate import log_evidence
from pyro_vae.evidence.judging import predicted_bias
from pyro_vae.evidence.markov import from_reciprocal_weights
from pyro_vae.evidence.weights import Evidence, from_log_weights

__all__ = [
    "ChiSquareBound",
    "Evidence",
    "chi_square_bound",
    "compare_evidence",
    "elbo",
    "from_log_weights",
    "from_reciprocal_weights",
    "log_evidence",
    "predicted_bias",
]
