"""How far to trust a posterior: the page, and what it is made from."""

from pyro_vae.chains.convergence import integrated_time, split_rhat
from pyro_vae.diagnostics.findings import Finding
from pyro_vae.diagnostics.gaps import Gaps, gaps
from pyro_vae.diagnostics.misspecification import Misspecification, misspecification
from pyro_vae.diagnostics.predictive_checks import PredictiveChecks, predictive_checks
from pyro_vae.diagnostics.rate_distortion import rate_distortion
from pyro_vae.diagnostics.report import Diagnosis, diagnose
from pyro_vae.evidence.weights import pareto_khat

__all__ = [
    "Diagnosis",
    "Finding",
    "Gaps",
    "Misspecification",
    "PredictiveChecks",
    "diagnose",
    "gaps",
    "integrated_time",
    "misspecification",
    "pareto_khat",
    "predictive_checks",
    "rate_distortion",
    "split_rhat",
]
