r"""The bound as a sum where it can be one, along draws where it cannot.

A latent y of the guide that is marked ``infer={"enumerate": "parallel"}`` takes all its values, and

.. math:: \sum_y q(y \mid x) \, E_{q(z \mid x, y)} \big[\log p(x, y, z) - \log q(y, z \mid x)\big]

is taken as it stands: no draw of y, no variance from it, an exact gradient.  Draws of z that depend
on y are made for each of its values.  A latent that is neither marked nor reparameterized counts as
the weight q / stop(q) = 1, whose gradient is its score: each term of the bound is weighted by those
of the latents in its own plates and the plates around them (DiCE).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.rings import LogRing
from torch import Tensor

from pyro_vae.densities.enumeration import (
    Enumerated,
    Symbols,
    by_plates,
    dims_of,
    enumerated,
    nesting,
)
from pyro_vae.densities.look import looking
from pyro_vae.densities.rules import require_rows, require_score, require_summable
from pyro_vae.densities.scales import one_scale
from pyro_vae.densities.sites import latents_of
from pyro_vae.densities.traces import sites_of_both
from pyro_vae.program.rows import Rows, num_rows

ROW = "a"  # the symbol of the rows' plate; Pyro's own are counted on from there
Run = dict[str, Enumerated]


class Expectation(NamedTuple):
    """A bound and its parts, in nats per datum.

    Attributes:
        bound: (B,), with each datum's share of what all data share.
        reconstruction: the expectation of log p(x | z), (B,).
        kl: by latent of a datum the expectation of log q - log p, (B,).
    """

    bound: Tensor
    reconstruction: Tensor
    kl: dict[str, Tensor]


def expected_bound(program: Any, x: Rows, *, summing: bool) -> Expectation:
    """One draw of what is drawn, a sum over what is summed.

    Args:
        program: has ``model`` and ``guide``.
        x: the rows.
        summing: whether the guide's marked latents are summed, or drawn like the others.

    Raises:
        ValueError: what no table of densities takes either; marked latents that are not finite.
    """
    with torch.no_grad(), looking(program):  # which dimensions plates take
        plain_q, plain_p = sites_of_both(program, x)
    require_rows(plain_q, plain_p, num_rows(x))
    drawn = latents_of(plain_q)
    summed = [name for name, site in drawn.items() if summing and site.enumeration]
    for name in summed:
        require_summable(drawn[name], "of the guide")
    scored = [n for n, s in drawn.items() if n not in summed and not s.has_rsample]
    require_score({name: drawn[name] for name in scored})
    inner = [n for n, s in latents_of(plain_p).items() if n not in plain_q and s.is_marked]

    rows_plates = [s.plate.name for s in (*plain_q.values(), *plain_p.values()) if s.plate]
    symbols = Symbols(dict.fromkeys(rows_plates, ROW))
    seen, first = poutine.trace(), -1 - nesting(plain_q, plain_p)
    q = enumerated(program, "guide", x, summed, symbols, first=first, trace=seen)
    replayed = poutine.replay(trace=seen.trace)
    p = enumerated(program, "model", x, inner, symbols, replayed, first=None)
    weights = [(q[name].log, q[name].plates) for name in summed]
    weights += [(_score(q[name].log), q[name].plates) for name in scored]
    if not summing:  # the gradient of -log q itself is zero on average, and Trace_ELBO leaves it
        for name in scored:
            q[name] = q[name]._replace(cost=_with_dims(q[name].cost.detach(), dims_of(q[name].log)))
    scale = one_scale(plain_q, plain_p)
    return _collected(scale, num_rows(x), q, p, _Weighted(weights, symbols.sizes))


def _score(log: Tensor) -> Tensor:
    """Of value zero, with the gradient of ``log``."""
    return _with_dims(log - log.detach(), dims_of(log))


def _with_dims(tensor: Tensor, dims: str) -> Tensor:
    tensor._pyro_dims = dims  # type: ignore[attr-defined]
    return tensor


class _Weighted:
    """Terms weighted by the probability of what they depend on, and summed by row.

    Args:
        logs: the log weight of each latent, packed, and its plates.
        sizes: of plates, by symbol.
    """

    def __init__(
        self, logs: Sequence[tuple[Tensor, frozenset[str]]], sizes: dict[str, int]
    ) -> None:
        self.logs, self.sizes = logs, sizes
        self._ring, self._known = LogRing(dim_to_size=sizes), dict[Any, Tensor]()

    def by_row(self, term: Tensor, plates: frozenset[str]) -> Tensor:
        """(B,), or () where the rows' plate is not around the term."""
        weight = self._weight(frozenset(dims_of(term)), plates)
        if weight is not None:
            term, weight = packed.broadcast_all(term, weight)
        dims = dims_of(term)
        if weight is not None:  # what cannot happen has no cost, be it infinite
            term = torch.where(weight > 0, term, 0.0) * weight
        others = [place for place, symbol in enumerate(dims) if symbol != ROW]
        term = term.sum(others) if others else term
        for symbol in plates - set(dims) - {ROW}:
            term = term * self.sizes[symbol]
        return term.expand(self.sizes[ROW]) if ROW in plates else term

    def _weight(self, dims: frozenset[str], plates: frozenset[str]) -> Tensor | None:
        logs = [log for log, around in self.logs if around <= plates]
        if not logs:
            return None
        kept = dims | plates
        if (kept, plates) not in self._known:
            others = {symbol for log in logs for symbol in dims_of(log)} - kept
            weight = self._ring.sumproduct(logs, others)
            self._known[kept, plates] = _with_dims(weight.exp(), dims_of(weight))
        return self._known[kept, plates]


def _collected(program_scale: float, rows: int, q: Run, p: Run, weighted: _Weighted) -> Expectation:
    """The terms of a bound, by row, put together."""
    summed = {each.symbol for each in p.values() if each.symbol is not None}
    costs: list[tuple[str, str, Tensor, frozenset[str]]] = []
    mixed = []
    for name, each in p.items():
        if each.symbol is not None or not summed.isdisjoint(dims_of(each.log)):
            mixed.append(each)
        elif each.site.observed:
            costs.append(("observed", name, each.log, each.plates))
        else:
            costs.append(("latent", name, each.log, each.plates))
    ring = LogRing(dim_to_size=weighted.sizes)
    for plates, terms in contract_tensor_tree(by_plates(mixed), summed, ring=ring).items():
        costs += [("observed", "", term, plates) for term in terms]
    costs += [
        ("latent", name, _with_dims(-each.cost, dims_of(each.cost)), each.plates)
        for name, each in q.items()
    ]
    bound: Any = 0.0
    reconstruction: Any = 0.0
    kl: dict[str, Any] = {}
    for kind, name, term, plates in costs:
        value = weighted.by_row(term, plates)
        if ROW not in plates:  # all data share it
            bound = bound + value / (program_scale * rows)
            continue
        bound = bound + value
        if kind == "observed":
            reconstruction = reconstruction + value
        else:
            kl[name] = kl.get(name, 0.0) - value
    return Expectation(bound.expand(rows), reconstruction, kl)
