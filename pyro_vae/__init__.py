"""Auto-Encoding Variational Bayes in Pyro.

Write a generative model and a neural guide as ordinary Pyro functions; swap the prior, the
likelihood, the posterior family or the learning algorithm; and know how far to trust the posterior.

    >>> import pyro_vae as pv
    >>> from pyro_vae.models import bernoulli_vae
    >>> digits = pv.datasets.load("digits")
    >>> vae = bernoulli_vae.build(digits.dim, latent_dim=2, hidden_dim=16)
    >>> run = pv.fit(vae, digits.train, pv.objectives.AEVB(), samples=2_000, progress=False)

Names are imported when they are first used, so that ``import pyro_vae`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pyro_vae.defaults import __version__ as __version__

if TYPE_CHECKING:
    from pyro_vae import (
        datasets,
        distributions,
        likelihoods,
        models,
        networks,
        objectives,
        optimizers,
        plotting,
        posteriors,
        priors,
        sklearn,
    )
    from pyro_vae.checking import check
    from pyro_vae.comparison import AutoencoderComparison, Comparison, compare, compare_autoencoder
    from pyro_vae.diagnostics import Diagnosis, diagnose
    from pyro_vae.errors import PyroVaeWarning
    from pyro_vae.evidence import Evidence, compare_evidence, elbo, log_evidence
    from pyro_vae.gradients import GradientReport, gradient_report
    from pyro_vae.inference_data import summarize, to_inference_data
    from pyro_vae.plotting.exploring import explore
    from pyro_vae.predictive import decode, encode, export, reconstruct, sample
    from pyro_vae.program import VAE, Program
    from pyro_vae.program.parts import Likelihood, Posterior, Prior
    from pyro_vae.refinement import Refinement, refine
    from pyro_vae.reporting import report
    from pyro_vae.runs import Run, load
    from pyro_vae.training import fit

_HOME = {
    "VAE": "program",
    "Program": "program",
    "Prior": "program.parts",
    "Likelihood": "program.parts",
    "Posterior": "program.parts",
    "check": "checking",
    "compare": "comparison",
    "Comparison": "comparison",
    "compare_autoencoder": "comparison",
    "AutoencoderComparison": "comparison",
    "fit": "training",
    "load": "runs",
    "Run": "runs",
    "compare_evidence": "evidence",
    "elbo": "evidence",
    "diagnose": "diagnostics",
    "Diagnosis": "diagnostics",
    "log_evidence": "evidence",
    "Evidence": "evidence",
    "gradient_report": "gradients",
    "GradientReport": "gradients",
    "sample": "predictive",
    "decode": "predictive",
    "encode": "predictive",
    "export": "predictive",
    "reconstruct": "predictive",
    "summarize": "inference_data",
    "to_inference_data": "inference_data",
    "explore": "plotting.exploring",
    "report": "reporting",
    "refine": "refinement",
    "Refinement": "refinement",
    "PyroVaeWarning": "errors",
}
_MODULES = (
    "datasets", "distributions", "engine", "likelihoods", "models", "networks", "objectives",
    "optimizers", "plotting", "posteriors", "priors", "sklearn",
)  # fmt: skip

__all__ = [
    "VAE",
    "AutoencoderComparison",
    "Comparison",
    "Diagnosis",
    "Evidence",
    "GradientReport",
    "Likelihood",
    "Posterior",
    "Prior",
    "Program",
    "PyroVaeWarning",
    "Refinement",
    "Run",
    "check",
    "compare",
    "compare_autoencoder",
    "compare_evidence",
    "datasets",
    "distributions",
    "elbo",
    "decode",
    "diagnose",
    "encode",
    "explore",
    "export",
    "fit",
    "gradient_report",
    "likelihoods",
    "load",
    "log_evidence",
    "models",
    "networks",
    "objectives",
    "optimizers",
    "plotting",
    "posteriors",
    "priors",
    "reconstruct",
    "refine",
    "report",
    "sample",
    "sklearn",
    "summarize",
    "to_inference_data",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"pyro_vae.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"pyro_vae.{name}")
    else:
        raise AttributeError(f"module 'pyro_vae' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
