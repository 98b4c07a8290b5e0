"""Which latents a posterior can draw, and whether the prior gives them a density of the same kind.

Where q reaches outside of the support of p, KL(q || p) is infinite, whether or not a draw on a few
rows has shown it.  A probability and a density have no ratio at all, and neither have densities
over J and over J - 1 dimensions, as on the simplex.  The other way round, a q that reaches less
than p is a restriction that the bound pays for, and no mistake.
"""

from __future__ import annotations

from typing import Any

from pyro_vae.checking.sites import Met, Mistakes, label
from pyro_vae.checking.values import such_as
from pyro_vae.densities.sites import latents_of
from pyro_vae.posteriors import fits
from pyro_vae.posteriors.suiting import kind_of


def supports(met: Met, mistakes: Mistakes) -> None:
    """Find posteriors that cannot have the prior of their site, and note those that reach less."""
    for name, p in latents_of(met.model).items():
        q = met.guide.get(name)
        where = label("guide", name)
        if q is None or q.observed or q.is_point or p.is_point:
            continue
        if mistakes.speaks_of(label("model", name)) or mistakes.speaks_of(where):
            continue  # of values, or of shapes
        ours, theirs = _support(q.law), _support(p.law)
        of_q, of_p = kind_of(ours), kind_of(theirs)
        if of_q == of_p or None in (of_q, of_p):
            continue
        pair = f"{q.family}, of {in_words(of_q)}, under a prior {p.family}, of {in_words(of_p)}"
        if fits(ours, theirs):
            met.notes.append(
                f"{where} is {pair}: it cannot draw the rest, which the bound pays for where the "
                "true posterior is there"
            )
            continue
        numbers = isinstance(of_q, tuple) and isinstance(of_p, tuple)
        mistakes.add(
            where,
            pair,
            "draws that the prior gives a density, else KL(q || p) is infinite"
            if numbers
            else "two densities of one kind, else log p - log q is no number of anything",
            f"choose a posterior with the support of the prior{such_as(theirs)}",
        )


def _support(law: Any) -> Any:
    try:
        return law.support
    except (NotImplementedError, AttributeError):
        return None


def in_words(kind: Any) -> str:
    """What values there are."""
    if kind == "discrete":
        return "discrete values"
    if kind == "simplex":
        return "shares of a whole"
    low, high = kind
    infinite = float("inf")
    if (low, high) == (-infinite, infinite):
        return "all real numbers"
    if high == infinite:
        return "positive numbers" if low == 0 else f"numbers above {low:g}"
    return f"numbers below {high:g}" if low == -infinite else f"numbers from {low:g} to {high:g}"
