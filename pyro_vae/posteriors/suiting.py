"""Which posterior fits which prior: q must not leave the support of p, or KL(q || p) is infinite.

Supports are constraints of torch.  On vectors of numbers they are intervals; shares of a whole are
a kind of their own, because their density is one over J - 1 dimensions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.distributions import constraints

from pyro_vae.posteriors.gaussian import Gaussian
from pyro_vae.posteriors.interval import LogitNormal
from pyro_vae.posteriors.positive import LogNormal
from pyro_vae.posteriors.simplex import LogisticNormal
from pyro_vae.recording.listing import classes_in

Interval = tuple[float, float]


def suited(support: Any) -> Callable[..., Any]:
    """What to call for the usual posterior of a prior with this support.

    Raises:
        ValueError: there is none here.

    Example:
        >>> suited(constraints.positive).__name__
        'LogNormal'
    """
    kind = kind_of(support)
    if kind == "simplex":
        return LogisticNormal
    if not isinstance(kind, tuple):
        raise ValueError(
            f"the prior's support is {support}, which none of pyro_vae.posteriors has: pass a "
            "posterior of your own"
        )
    low, high = kind
    if (low, high) == (0.0, 1.0):
        return LogitNormal
    if max(-low, high) < float("inf"):
        return functools.partial(LogitNormal, low=low, high=high)
    if kind == (0.0, float("inf")):
        return LogNormal
    if kind == (-float("inf"), float("inf")):
        return Gaussian
    raise ValueError(
        f"the prior's support is {support}, and no posterior of pyro_vae has one such bound: "
        "shift it to 0, or pass a posterior of your own"
    )


def suggested(support: Any) -> list[str]:
    """The posteriors of ours that have this support, as they are written."""
    kind = kind_of(support)
    found = [
        name
        for name, cls in classes_in("posteriors").items()
        if name == cls.__name__ and kind_of(cls.support) == kind  # type: ignore[attr-defined]
    ]
    if isinstance(kind, tuple) and kind != (0.0, 1.0) and max(-kind[0], kind[1]) < float("inf"):
        found.append(f"LogitNormal(low={kind[0]:g}, high={kind[1]:g})")
    return sorted(found)


def fits(posterior: Any, prior: Any) -> bool:
    """Whether a support of q is within one of p; also where either cannot be told.

    Args:
        posterior, prior: supports.
    """
    q, p = kind_of(posterior), kind_of(prior)
    if isinstance(q, tuple) and isinstance(p, tuple):
        return p[0] <= q[0] and q[1] <= p[1]
    return q == p or None in (q, p)


def require_fit(posterior: Any, prior: Any) -> None:
    """Refuse a posterior whose draws the prior takes for impossible.

    Args:
        posterior, prior: parts; those that name no support pass.

    Raises:
        ValueError: both supports, and the posteriors that have the prior's.
    """
    q, p = getattr(posterior, "support", None), getattr(prior, "support", None)
    if q is None or p is None or fits(q, p):
        return
    names = suggested(p)
    advice = f"pass one of pv.posteriors: {', '.join(names)}" if names else "pass one of your own"
    raise ValueError(
        f"the posterior {type(posterior).__name__} draws {_said(q)}, expected what the prior has, "
        f"which is {type(prior).__name__} of {_said(p)}: {advice}"
    )


def _said(support: Any) -> str:
    kind = kind_of(support)
    if kind == "simplex":
        return "shares of a whole"
    return (
        f"numbers in ({kind[0]:g}, {kind[1]:g})" if isinstance(kind, tuple) else f"from {support}"
    )


def kind_of(support: Any) -> Interval | str | None:
    """Its bounds, "simplex", "discrete", or None."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if isinstance(support, type(constraints.simplex)):
        return "simplex"
    if getattr(support, "is_discrete", False):
        return "discrete"
    if isinstance(support, type(constraints.real)):
        return -float("inf"), float("inf")
    low, high = (getattr(support, f"{side}_bound", None) for side in ("lower", "upper"))
    if low is None and high is None:
        return None
    found = []
    for bound, otherwise in ((low, -float("inf")), (high, float("inf"))):
        values = torch.as_tensor(otherwise if bound is None else bound).unique()
        if len(values) != 1:  # each latent has its own
            return None
        found.append(values.item())
    return found[0], found[1]
