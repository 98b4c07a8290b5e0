"""What an estimate of log p(x) was measured on: which data, and in which unit."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from pyro.distributions import (
    Bernoulli,
    BetaBinomial,
    Binomial,
    DirichletMultinomial,
    Multinomial,
)
from torch import Tensor

from pyro_vae.densities.look import Look
from pyro_vae.densities.observations import entries_of_rows
from pyro_vae.densities.sites import Site
from pyro_vae.distributions.counts import WordCounts
from pyro_vae.distributions.gaps import without_gaps
from pyro_vae.distributions.soft_bernoulli import SoftBernoulli
from pyro_vae.program.rows import Rows

DENSITY, MASS = "a density", "a mass"
CROSS_ENTROPY = "a cross-entropy, which is neither mass nor density"


class Unit(NamedTuple):
    """What log p(x) is the logarithm of.

    Attributes:
        kind: a density (nats that change with the unit of x), a mass, or neither.
        numbers: how many numbers of a datum have one.
        given: what of x is given, such as the totals of multinomial counts; "" where nothing is.
        families: of the laws, by site.
    """

    kind: str
    numbers: int
    given: str
    families: tuple[str, ...]

    def __str__(self) -> str:
        given = f" given {self.given}" if self.given else ""
        return f"{self.kind} of {self.numbers} numbers{given} ({', '.join(self.families)})"


class Measured(NamedTuple):
    """How and on what log p(x) was estimated.

    Attributes:
        method: in words.
        binarize: of the data, where a ``Data`` says so, else None.
        digest: of the rows that were scored, sha256.
        unit: of the likelihood.
        draws: of a datum, that were averaged; 1 where none were.
    """

    method: str
    binarize: str | None
    digest: str
    unit: Unit
    draws: int = 1

    def __str__(self) -> str:
        pixels = "" if self.binarize in (None, "none") else f", binarized: {self.binarize}"
        return f"{self.method}; {self.unit}; data {self.digest[:8]}{pixels}"


def measured(look: Look, x: Any, rows: Rows, method: str, draws: int) -> Measured:
    """What is to be known of an estimate.

    Args:
        look: at the program.
        x: the data as the user passed them.
        rows: the same on the program's terms.
        method: in words.
        draws: of a datum.
    """
    binarize = getattr(x, "binarize", None)
    return Measured(method, binarize, _digest(look, rows), _unit(look, rows), draws)


def _digest(look: Look, rows: Rows) -> str:
    """Of what is observed: covariates may differ from model to model.

    In float32, so that programs of different precision are told to have scored the same rows.
    """
    entries = entries_of_rows(rows)
    observed = {entry for entry in look.entries.values() if entry is not None}
    first = next(iter(entries))
    found = hashlib.sha256()
    for name in sorted(observed or {first}):
        numbers = entries[name].detach().cpu().float().flatten(1 if entries[name].dim() > 1 else 0)
        numbers = numbers.contiguous() + 0.0  # -0 is 0
        found.update(repr((numbers.shape[0], numbers.numel())).encode())
        found.update(numbers.numpy().tobytes())
    return found.hexdigest()


def _unit(look: Look, rows: Rows) -> Unit:
    sites = [site for site in look.observations.values() if isinstance(site.value, Tensor)]
    kinds = sorted({_kind(site, rows) for site in sites})
    numbers = sum(site.value[0].numel() for site in sites if len(site.value))
    given = sorted({_given(site) for site in sites} - {""})
    families = tuple(sorted({site.family for site in sites}))
    return Unit(" and ".join(kinds), numbers, " and ".join(given), families)


def _kind(site: Site, rows: Rows) -> str:
    law = without_gaps(site.base)
    if isinstance(law, SoftBernoulli):
        known = entries_of_rows(rows)
        values = next(iter(known.values())) if len(known) == 1 else site.value
        whole = (values == 0) | (values == 1) | values.isnan()
        return MASS if bool(whole.all()) else CROSS_ENTROPY
    try:
        return MASS if law.support.is_discrete else DENSITY
    except (NotImplementedError, AttributeError):
        return MASS if isinstance(law, Bernoulli) else DENSITY


def _given(site: Site) -> str:
    law = without_gaps(site.base)
    if isinstance(law, WordCounts) and law.ordered:
        return "totals, words in order"
    if isinstance(law, (Multinomial, DirichletMultinomial, WordCounts)):
        return "totals"
    if isinstance(law, (Binomial, BetaBinomial)):
        return "numbers of trials"
    return "" if not site.is_masked else "what a mask leaves in"
