"""How far to trust an estimate: tails of weights, chains that met."""

from pyro_vae.chains.convergence import integrated_time, split_rhat
from pyro_vae.evidence.weights import pareto_khat

__all__ = ["integrated_time", "pareto_khat", "split_rhat"]
