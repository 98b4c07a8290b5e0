"""log p(x): estimates that say how far to trust them."""

from pyro_vae.evidence.bound import elbo
from pyro_vae.evidence.estimate import log_evidence
from pyro_vae.evidence.markov import from_reciprocal_weights
from pyro_vae.evidence.weights import Evidence, from_log_weights

__all__ = ["Evidence", "elbo", "from_log_weights", "from_reciprocal_weights", "log_evidence"]
