r"""Latents of the model alone that are summed out: mixtures, topics, hidden Markov chains.

A finite latent c that is marked ``infer={"enumerate": "parallel"}`` and that the guide does not
have is no part of the bound: with it summed out, per datum,

.. math:: p(x, z) = \sum_c p(c) \, p(z \mid c) \, p(x \mid z, c)

is an ordinary density of the latents that are left.  Pyro's handler runs the model at all values of
c side by side, each in a dimension of its own, and its tensor message passing takes sums over these
and products over plates in the order that is cheapest: a chain of T steps under ``pyro.markov``
costs T small products.

Each site that depends on c then has the density given the sites before it, c summed out,
:math:`p(z_1), p(z_2 \mid z_1), \ldots, p(x \mid z)`, so that tables, KL terms and reconstructions
mean what they mean elsewhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from pyro import poutine
from pyro.distributions import Categorical
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.densities.rules import require_summable
from pyro_vae.densities.sites import Site, Sites, has_finite_support, latents_of
from pyro_vae.densities.traces import At, sites_of
from pyro_vae.program.rows import Rows, num_rows


@dataclass(frozen=True, eq=False, slots=True)
class Marginal(Site):
    """A site given the sites before it, with the marked latents summed out.

    Its law has the dimensions of their values in front; ``term`` is what it comes to, (B,).
    """

    term: Tensor | None = None

    def per_datum(self) -> Tensor:
        if self.term is None:
            raise RuntimeError(f"the marginal of {self.name} was not computed")
        return self.term


class Enumerated(NamedTuple):
    """A site of a run at all values of the marked latents.

    Attributes:
        site: with a dimension in front for each marked latent that it depends on.
        log: its log density, packed: without dimensions of one entry, the others by symbol.
        cost: the same under masks.
        plates: the symbols of its plates.
        symbol: of its own values, where it is enumerated.
    """

    site: Site
    log: Tensor
    cost: Tensor
    plates: frozenset[str]
    symbol: str | None


class Symbols:
    """Names of dimensions, shared by the runs of guide and model.

    Attributes:
        plates: by the name of the plate.
        sizes: of plates, by symbol.
    """

    def __init__(self, plates: dict[str, str] | None = None) -> None:
        self.plates: dict[str, str] = plates or {}
        self.sizes: dict[str, int] = {}


def model_sites(program: Any, x: Rows, values: Mapping[str, Tensor]) -> Sites:
    """The model's sites at these latents, those summed out that are marked and not among them.

    Args:
        program: has ``model``.
        x: the rows.
        values: of the latents, by site.

    Raises:
        ValueError: for a marked latent that all data share, or that is not finite.
    """
    plain = sites_of(program, "model", x, At(values), FirstValue(values))
    marked = [n for n, s in latents_of(plain).items() if s.is_marked and n not in values]
    for name in marked:
        require_summable(plain[name])
    if not marked:
        return plain
    symbols = Symbols()
    run = enumerated(program, "model", x, marked, symbols, At(values), first=-1 - nesting(plain))
    return _summed_out(plain, run, symbols, num_rows(x))


def marked_draws(program: Any, x: Rows, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draws of the marked latents given the other latents, c ~ p(c | z), where z depends on c.

    Empty where it does not: an ancestral run of the model then draws them rightly.
    """
    drawn: dict[str, Tensor] = {}
    while True:
        given = {**values, **drawn}
        plain = sites_of(program, "model", x, At(given), FirstValue(given))
        marked = [n for n, s in latents_of(plain).items() if s.is_marked and n not in given]
        if not marked:
            return drawn
        symbols, trace = Symbols(), poutine.trace()
        first = -1 - nesting(plain)
        run = enumerated(program, "model", x, marked, symbols, At(given), first=first, trace=trace)
        latent = {n: each for n, each in run.items() if not each.site.observed}
        summed = {each.symbol for each in latent.values() if each.symbol is not None}
        depends = [
            n for n in values if n in latent and not summed.isdisjoint(dims_of(latent[n].log))
        ]
        if not (depends or drawn):
            return {}
        site = plain[marked[0]]
        symbol = str(run[site.name].symbol)
        terms = [each for each in latent.values() if not summed.isdisjoint(dims_of(each.log))]
        logits = contract_to_tensor(
            by_plates(terms), summed, run[site.name].plates, {symbol},
            ring=LogRing(dim_to_size=symbols.sizes),
        )  # fmt: skip
        at = trace.trace.symbol_to_dim
        logits = packed.unpack(logits, at)
        logits = logits.unsqueeze(-1).transpose(-1, at[symbol] - 1)
        while logits.shape[0] == 1 and logits.dim() > 1:
            logits = logits.squeeze(0)
        logits = logits.expand(*site.batch_shape, logits.shape[-1])
        index = Categorical(logits=logits).sample()
        support = site.law.enumerate_support(expand=True)
        index = index.reshape(1, *index.shape, *[1] * len(site.event_shape))
        drawn[site.name] = support.take_along_dim(index, 0)[0]


class FirstValue(Messenger):
    """Gives marked latents the first of their values, so that no noise is spent on them."""

    def __init__(self, but: Mapping[str, Any]) -> None:
        super().__init__()
        self.but = but

    def _pyro_sample(self, msg) -> None:
        if msg["is_observed"] or msg["done"] or site_is_subsample(msg) or msg["name"] in self.but:
            return
        if (msg["infer"] or {}).get("enumerate") == "parallel" and has_finite_support(msg["fn"]):
            msg["value"], msg["done"] = msg["fn"].enumerate_support(expand=True)[0], True


class _Only(Messenger):
    """Marks these latents and no others, in a copy of what the user wrote."""

    def __init__(self, marked: Sequence[str]) -> None:
        super().__init__()
        self.marked = marked

    def _pyro_sample(self, msg) -> None:
        how = "parallel" if msg["name"] in self.marked else None
        msg["infer"] = {**(msg["infer"] or {}), "enumerate": how, "num_samples": None}


def nesting(*runs: Sites) -> int:
    """How many dimensions from the right plates take."""
    dims = [-p.dim for sites in runs for s in sites.values() for p in s.plates if p.dim is not None]
    batches = [len(s.batch_shape) for sites in runs for s in sites.values()]
    return max([*dims, *batches], default=0)


def enumerated(
    program: Any,
    role: Any,
    x: Rows,
    marked: Sequence[str],
    symbols: Symbols,
    *handlers: Messenger,
    first: int | None,
    trace: Any = None,
) -> dict[str, Enumerated]:
    """A run in which the marked latents take all their values, each in a dimension of its own.

    Args:
        program, role, x: what runs.
        marked: names of latents.
        symbols: takes the names of the dimensions.
        handlers: of Pyro's kind, outside of the enumeration.
        first: the first dimension that is free, from the right; None to go on after the guide's.
        trace: takes Pyro's messages.
    """
    trace = poutine.trace() if trace is None else trace

    inside = (EnumMessenger(first), trace, _Only(marked))
    sites = sites_of(program, role, x, *handlers, *inside)
    trace.trace.symbolize_dims(symbols.plates)
    run = {}
    for name, site in sites.items():
        infer = trace.trace.nodes[name]["infer"]
        dims = infer["_dim_to_symbol"]
        plates = frozenset(dims[p.dim] for p in site.plates if p.dim is not None)
        symbols.sizes |= {dims[p.dim]: p.size for p in site.plates if p.dim is not None}
        # A latent that is summed out counts in full, also where a mask leaves it out: its
        # probabilities then sum to one.
        cost = packed.pack(site.density(), dims)
        log, symbol = cost, None
        if name in marked:
            log = packed.pack(site.law.log_prob(site.value), dims)
            symbol = infer.get("_enumerate_symbol")
        run[name] = Enumerated(site, log, cost, plates, symbol)
    return run


def _summed_out(plain: Sites, run: dict[str, Enumerated], symbols: Symbols, rows: int) -> Sites:
    """The sites without those that are summed out, the ones that depend on them as marginals."""
    summed = {each.symbol for each in run.values() if each.symbol is not None}
    mixing = [each for each in run.values() if each.symbol is not None]
    row = next(symbols.plates[each.site.plate.name] for each in mixing if each.site.plate)
    result: Sites = {}
    terms, before = list(mixing), None
    cache: dict[Any, Any] = {}
    for name, each in run.items():
        if each.symbol is not None:
            continue
        if summed.isdisjoint(dims_of(each.log)):
            result[name] = plain[name]
            continue
        _require_rows(each, row)
        terms.append(each)
        total = contracted(terms, summed, row, symbols.sizes, cache).reshape(rows)
        term = total if before is None else total - before
        result[name] = marginal(each.site, term)
        before = total
    return result


def contracted(
    terms: Sequence[Enumerated], summed: set[str], row: str, sizes: dict[str, int], cache: Any
) -> Tensor:
    """log of the sum over ``summed`` of the product of terms, by row."""
    ring = LogRing(cache, dim_to_size=sizes)
    return contract_to_tensor(by_plates(terms), set(summed), frozenset(row), ring=ring)


def by_plates(terms: Sequence[Enumerated]) -> OrderedDict[frozenset[str], list[Tensor]]:
    """Terms by their plates, as Pyro's contractions take them."""
    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for each in terms:
        tree.setdefault(each.plates, []).append(each.log)
    return tree


def dims_of(term: Tensor) -> str:
    """The symbols of a packed tensor's dimensions."""
    return term._pyro_dims  # type: ignore[attr-defined]


def marginal(site: Site, term: Tensor) -> Marginal:
    held: Iterator[tuple[str, Any]] = ((f.name, getattr(site, f.name)) for f in fields(Site))
    return Marginal(**dict(held), term=term)


def _require_rows(each: Enumerated, row: str) -> None:
    """Refuse a site that depends on what is summed out, and has no row of its own."""
    if row not in each.plates:
        raise ValueError(
            f'site "{each.site.name}" depends on a latent that is summed out and is outside the '
            "rows' plate, expected each datum's terms in its own row: indent it under the plate"
        )
    if each.site.factor != 1.0:
        raise ValueError(
            f'site "{each.site.name}" depends on a latent that is summed out and is weighed by '
            "poutine.scale, expected a factor of 1, because a weighed term has no such sum"
        )
