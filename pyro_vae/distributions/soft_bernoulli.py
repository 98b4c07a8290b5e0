"""Distributions that torch and Pyro lack."""

from __future__ import annotations

import pyro.distributions as dist
from torch.distributions import constraints


class SoftBernoulli(dist.Bernoulli):
    r"""The paper's grey-pixel likelihood: x log y + (1 - x) log(1 - y) for x in [0, 1].

    A cross-entropy with soft targets, *not* a density of grey values (it does not integrate to
    one), so its numbers can be compared with the paper's Figure 2 and with nothing measured on
    binary data.  Draws are binary.  At y = x it reaches minus the entropy of Bernoulli(x).
    """

    support = constraints.unit_interval
