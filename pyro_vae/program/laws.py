"""Distributions of torch as those of Pyro, which alone can stand in ``pyro.sample``.

Pyro's classes are torch's with more methods, which plates and masks call, under the same names and
with the same attributes.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin

from pyro_vae.distributions.flows import NormalizingFlow, zuko

OF_LAWS = ("Independent", "TransformedDistribution", "MixtureSameFamily")  # what laws are made of
INNER = ("base_dist", "_mixture_distribution", "_component_distribution")


def is_foreign(law: Any) -> bool:
    """Whether it is a distribution, and not Pyro's."""
    return isinstance(law, torch.distributions.Distribution) and not isinstance(
        law, TorchDistributionMixin
    )


def as_pyro(law: Any, site: str) -> Any:
    """The same distribution, with the same tensors, in Pyro's class of that name.

    Args:
        law: a distribution; what is Pyro's own is returned as it is.  A flow of zuko is one of
            torch.
        site: where it stands, for the message.

    Raises:
        TypeError: a distribution of neither torch nor Pyro, and how to make it one of Pyro's.
    """
    if not is_foreign(law):
        return law
    name, module = type(law).__name__, type(law).__module__
    if type(law) is zuko.distributions.NormalizingFlow and not law.reinterpreted:
        return NormalizingFlow.of_zuko(law)
    known = getattr(dist, name, None)
    if known is None or type(law) is not getattr(torch.distributions, name, None):
        raise TypeError(
            f'site "{site}" has the distribution {module}.{name}, which is none of Pyro\'s: give '
            f"it Pyro's methods, class Mine({name}, pyro.distributions.torch_distribution."
            "TorchDistributionMixin): pass, and use that, or one of pyro.distributions"
        )
    twin = known.__new__(known)
    twin.__dict__.update(law.__dict__)
    if name in OF_LAWS:
        inner = {n: as_pyro(value, site) for n, value in law.__dict__.items() if n in INNER}
        twin.__dict__.update(inner)
    if name == "Uniform":  # what Pyro's constructors add
        twin._unbroadcasted_low, twin._unbroadcasted_high = law.low, law.high
    elif name == "Poisson":
        twin.is_sparse = False
    return twin
