"""The numbers that the sites of a program come to: possible values, finite densities, gradients.

With validation off, which captured graphs and ``python -O`` have, nobody else looks at them.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.checking.sites import Met, Mistakes, first_line, label
from pyro_vae.densities.sites import Site, by_row
from pyro_vae.distributions.gaps import NanAllowed, without_gaps
from pyro_vae.posteriors import suggested


def values(met: Met, mistakes: Mistakes) -> None:
    """Parameters and values are possible, and log densities finite; fills ``met.scored``."""
    for role, name, site in met:
        where, before = label(role, name), len(mistakes)
        possible_parameters(site, where, mistakes)
        if role == "model" and len(mistakes) == before:
            possible_values(site, where, mistakes)
        try:
            events = site.density()
            density = by_row(events, met.axis(site)).detach()
        except Exception as error:  # of shapes or a family of the user's own
            if not mistakes.speaks_of(where):  # else a consequence
                mistakes.cause = mistakes.cause or error
                mistakes.add(
                    where,
                    f"log_prob of {site.family} fails ({first_line(error)})",
                    "log densities (B,)",
                    "compare the shapes of the value and of the distribution",
                )
            continue
        met.scored[role, name] = events
        finite = density.isfinite()
        if len(mistakes) == before and not met.has_gaps and not finite.all():
            row = int((~finite).flatten().nonzero()[0])
            got = f"log density {density.flatten()[row].item()}"
            advice = "bound scales away from zero and logits away from infinity"
            mistakes.add(
                where, f"{got} at row {row}" if finite.dim() else got, "a finite number", advice
            )


def possible_parameters(site: Site, where: str, mistakes: Mistakes) -> None:
    """A distribution's parameters are possible; with validation off nobody else asks."""
    law = site.base
    for name, constraint in getattr(law, "arg_constraints", {}).items():
        value = law.__dict__.get(name)  # other parameters are computed from these
        if not isinstance(value, Tensor) or constraints.is_dependent(constraint):
            continue
        if value.is_floating_point() and not value.isfinite().all():
            continue  # shows in the density, with its row
        if not constraint.check(value).all():
            mistakes.add(
                where,
                f"{name} of {site.family} {_range(value)}",
                describe(constraint),
                "map the network's output there, with softplus, exp or sigmoid",
            )


def possible_values(site: Site, where: str, mistakes: Mistakes, first_row: int = 0) -> None:
    """The value of a site is possible under its distribution; its rows count from ``first_row``."""
    value, mask = site.value, site.mask
    if not isinstance(value, Tensor) or not value.numel() or mask is False:
        return
    gaps = without_gaps(site.base) is not site.base  # NaN is a possible value there, others not
    if value.is_floating_point() and not (value.isfinite() | (value.isnan() & gaps)).all():
        return  # shows in the density, with its row
    try:
        inside = _possible(site.law, value)
    except (NotImplementedError, AttributeError, RuntimeError):
        return  # no support that could be asked, or a shape that is a mistake of its own
    if isinstance(mask, Tensor):
        inside = inside | ~mask.bool()
    if not inside.all():
        advice = f"choose a guide with the support of the prior{such_as(site.law.support)}"
        if site.observed:
            advice = _advice_for_data(site.law.support, value)
        found = f"values {_range(value)}{_such_as(site, inside, first_row)}"
        mistakes.add(where, found, describe(site.law.support), advice)


def such_as(support: Any) -> str:
    """Posteriors of this package with a support, as the end of a sentence; "" if there are none."""
    names = suggested(support)
    return f", as one of pv.posteriors: {', '.join(names)}" if names else ""


def _such_as(site: Site, inside: Tensor, first_row: int) -> str:
    """The first impossible value and its row, as far as they can be told."""
    value, said = site.value, " one"
    whole = inside.reshape(*inside.shape, *(1,) * (value.dim() - inside.dim())).expand(value.shape)
    try:
        alone = _without_events(site.law.support).check(value)
    except (RuntimeError, NotImplementedError, AttributeError):
        alone = inside
    wrong = ~(whole | alone) if alone.shape == value.shape else ~whole
    index = wrong.nonzero()[0]
    if alone.shape == value.shape:
        said = f" {value[tuple(index)].item():g}"
    dim = -1 if site.axis is None else value.dim() - len(site.event_shape) + site.axis
    if dim >= 0:
        said += f" in row {first_row + int(index[dim])}"
    return "" if said == " one" else f", such as{said}"


def _possible(whole: Any, value: Tensor) -> Tensor:
    """Which values are in the support, or masked by ``law.mask(...)``."""
    law = whole
    while isinstance(law, (dist.Independent, dist.ExpandedDistribution)):
        law = law.base_dist
    if isinstance(law, dist.MaskedDistribution):
        inside = law.base_dist.support.check(value)
        return inside | ~torch.as_tensor(law._mask, dtype=torch.bool, device=value.device)
    return whole.support.check(value)


def _advice_for_data(support: Any, value: Tensor) -> str:
    known = value[~value.isnan()]
    low, high = known.min().item(), known.max().item()
    kind = _without_events(support)
    kind = kind.support if isinstance(kind, NanAllowed) else kind
    binary = kind is constraints.boolean
    if getattr(support, "is_discrete", False) and not binary and bool((known % 1 != 0).any()):
        return "round them, or choose a likelihood for such values"
    if low < 0 or not (binary or kind is constraints.unit_interval):
        return "shift or scale x, or choose a likelihood for such values"
    if high > 1:
        divisor = divisor_for(high)
        binarize = ', binarize="threshold"' if binary else ""
        return f"scale them, pv.datasets.from_array(x, scale={divisor}{binarize})"
    return (
        'binarize them, pv.datasets.from_array(x, binarize="threshold"), or build the likelihood '
        "with soft_targets=True"
    )


def divisor_for(high: float) -> int:
    """What pixels up to here are divided by."""
    return 16 if high <= 16 else 255 if high <= 255 else round(high)


def _range(value: Tensor) -> str:
    known = value[~value.isnan()]
    return f"from {known.min().item():g} to {known.max().item():g}"


def _without_events(constraint: Any) -> Any:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def describe(constraint: Any) -> str:
    """A constraint in one line, such as ``GreaterThan(lower_bound=0.0)``."""
    constraint = _without_events(constraint)
    if isinstance(constraint, NanAllowed):
        constraint = constraint.support
    if constraint is constraints.boolean:
        return "0 or 1"
    if constraint is constraints.nonnegative_integer:
        return "whole numbers from 0 on"
    return " ".join(str(constraint).split())[:80]
