r"""Predictive checks: would data of the model look like those that were observed?

Each statistic T of the observed data is held against T of S data sets that the model draws in their
place, x^rep ~ p(x | z), z ~ q(z | x) (posterior) or z ~ p(z) (prior).  Its two-sided p-value is

.. math:: p = \min\Big(1,\;
    2 \min_{\pm} \frac{1 + \#\{s : \pm T(x^{rep}_s) \ge \pm T(x)\}}{S + 1}\Big).

From the prior a true model has p <= a in at most a share a of all data sets, whatever S.  From the
posterior it has fewer: the latents have seen the data that they are to predict, so that *posterior
predictive p-values are conservative*, and a good one is no proof.

Of many features, such as pixels, one statistic is made: the largest distance of a feature's mean
from where replicates have it, in their standard deviations, whose law over replicates is known.

Sources: Rubin (1984); Meng (1994) for the conservative p-value; Gelman et al. (2013), chapter 6;
Holm (1979) for several statistics at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.checking.guards import require_possible_data
from pyro_vae.densities.look import Look
from pyro_vae.densities.missing import usable_rows
from pyro_vae.diagnostics.findings import Finding, named
from pyro_vae.diagnostics.replicates import Kind, Observed, Source, observed_of, replicates
from pyro_vae.program.calling import evaluating
from pyro_vae.progress import Record, counting
from pyro_vae.turns import taking_turns

Statistic = Callable[[Any], Any]
USUAL = 500  # replicates
FEATURES = "furthest mean of a feature, in its sds,"
FREQUENCIES = "furthest frequency of a category, in its sds,"


class Check(NamedTuple):
    """One statistic of what was observed, and of the replicates.

    Attributes:
        site: the observed site; "" for a statistic of the user's.
        statistic: its name.
        observed: its value.  Of many features together, the largest distance from their means.
        replicated: the same of each replicate, (S,), float64.
        low, high: the central 95 % of these.
        p_value: two-sided; of features together that of the largest distance.
        outside: the features beyond the simultaneous band, by number.
    """

    site: str
    statistic: str
    observed: float
    replicated: Tensor
    low: float
    high: float
    p_value: float
    outside: tuple[int, ...] = ()

    @property
    def mean(self) -> float:
        """Over replicates."""
        return float(self.replicated.mean())

    def __str__(self) -> str:
        of = f' of "{self.site}"' if self.site else ""
        text = (
            f"{self.statistic}{of} is {self.observed:.4g}, replicated {self.mean:.4g} "
            f"[{self.low:.4g}, {self.high:.4g}], p = {self.p_value:.3g}"
        )
        if self.outside:
            text += f", {len(self.outside)} outside their band: {named(list(self.outside))}"
        return text


@dataclass(frozen=True, eq=False, repr=False)
class PredictiveChecks:
    """The checks of one kind, and a verdict on all of them together.

    Attributes:
        source: "posterior" or "prior".
        checks: one a statistic.
        level: how often at least one is called wrong where the model is right: of the prior at
            that rate at most, of the posterior more seldom.
    """

    source: Source
    checks: tuple[Check, ...]
    level: float

    def adjusted(self) -> list[float]:
        """p-values for all statistics at once, by Holm, in the order of the checks."""
        p = torch.tensor([check.p_value for check in self.checks], dtype=torch.float64)
        order = p.argsort()
        factors = torch.arange(len(p), 0, -1, dtype=p.dtype)
        values = (p[order] * factors).cummax(0).values.clamp_max(1.0)
        return torch.zeros_like(p).scatter(0, order, values).tolist()

    def __repr__(self) -> str:
        lines = [f"PredictiveChecks({self.source}, {len(self.checks)} statistics"]
        return "\n".join([*lines, *(f"  {check}" for check in self.checks)]) + ")"

    def findings(self) -> list[Finding]:
        """One verdict: bad where a statistic is outside what the model makes, all together."""
        question = f"{self.source} predictive check"
        wrong = [
            check for check, p in zip(self.checks, self.adjusted(), strict=True) if p <= self.level
        ]
        if wrong:
            text = "; ".join(map(str, wrong[:3]))
            more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            text = f"Data of the model differ from the observed ones: {text}{more}."
            if self.source == "posterior":
                text += " Their latents are the guide's: where it is no posterior, that may be why."
            return [Finding(question, "bad", text, self.level)]
        closest = min(self.checks, key=lambda check: check.p_value)
        text = f"No statistic of {len(self.checks)} differs; the nearest to it: {closest}."
        if self.source == "posterior":
            text += " These p-values are conservative: the latents have seen the data."
        return [Finding(question, "good", text, self.level)]


@taking_turns
def predictive_checks(
    program: nn.Module,
    x: Any,
    *,
    source: Source = "posterior",
    statistics: Mapping[str, Statistic] | None = None,
    num_replicates: int | None = None,
    level: float = 0.05,
    seed: int = 0,
    progress: bool | Callable[[Record], Any] | None = None,
) -> PredictiveChecks:
    """Hold statistics of the data against those of data that the model draws in their place.

    Of reals: mean, standard deviation, least, largest, and the mean of each feature.  Of zeros and
    ones: mean, spread of the rows' means, features.  Of counts: mean, share of zeros, variance over
    mean, coefficient of variation, largest, features.  Of categories: the frequency of each.  What
    is missing or masked is left out of both sides.

    Args:
        program: the program, put into evaluation mode for as long as this takes.
        x: data (N, ...); covariates are kept.
        source: the latents of replicates come from the guide at x, or from the prior.
        statistics: more of them by name, f(data) -> number, where data are what the one observed
            site has, (N, ...), or a dict by site; what does not count is NaN there.
        num_replicates: S; None draws 500, or as many more as the level asks for.
        level: of the verdict on all statistics together.
        seed: of the noise.
        progress: as of ``pv.fit``.

    Raises:
        ValueError: too few replicates to call anything wrong at that level; a statistic that is no
            number; a model that observes nothing, or has a ``pyro.factor``.
    """
    if source not in ("posterior", "prior"):
        raise ValueError(f'source is {source!r}, expected "posterior" or "prior"')
    if num_replicates is not None:
        num_replicates = errors.whole("num_replicates", num_replicates)
    level, seed = errors.within("level", level, "(0, 1)"), errors.seed_number(seed)
    statistics = dict(statistics or {})
    rows = usable_rows(x, program)
    with torch.no_grad(), evaluating(program):
        require_possible_data(Look.at(program, rows), rows)
        observed = observed_of(program, rows)
        first = _all(observed, {name: each.values for name, each in observed.items()}, statistics)
        least = 2 * len(first) / level - 1
        if num_replicates is None:
            num_replicates = max(USUAL, math.ceil(least))
        if num_replicates < least:
            raise ValueError(
                f"num_replicates is {num_replicates}, expected at least {int(least) + 1}, because "
                f"fewer call none of {len(first)} statistics wrong at level {level:g}"
            )
        tables = {key: [value] for key, value in first.items()}
        with counting(
            progress, num_replicates, label="predictive checks", unit=" replicates"
        ) as advance:
            for drawn in replicates(program, rows, source, num_replicates, seed):
                for key, value in _all(observed, drawn, statistics).items():
                    tables[key].append(value)
                advance(1)
    checks = [_check(*key, torch.stack(values), level) for key, values in tables.items()]
    return PredictiveChecks(source, tuple(checks), level)


def _check(site: str, statistic: str, table: Tensor, level: float) -> Check:
    """From the values of the data, in front, and of all replicates: (S + 1,) or (S + 1, F)."""
    outside: tuple[int, ...] = ()
    if table.dim() == 2:
        # Observed and replicated alike, so that under a true model each is as likely the largest.
        spread = table.std(0)
        distance = (table - table.mean(0)).abs() / torch.where(spread > 0, spread, 1.0)
        furthest = distance.amax(-1)
        band = furthest[1:].quantile(1 - level)
        outside = tuple((distance[0] > band).nonzero().flatten().tolist())
        table, sides = furthest, 1
    else:
        sides = 2
    observed, replicated = table[0], table[1:]
    above = (replicated >= observed).double().sum() + 1
    below = (replicated <= observed).double().sum() + 1
    rarer = above if sides == 1 else 2 * torch.minimum(above, below)
    low, high = replicated.quantile(torch.tensor([0.025, 0.975], dtype=table.dtype)).tolist()
    p = min(1.0, float(rarer) / len(table))
    return Check(site, statistic, float(observed), replicated, low, high, p, outside)


Table = dict[tuple[str, str], Tensor]  # (site, statistic) -> () or (F,), float64


def _all(
    observed: dict[str, Observed], values: dict[str, Tensor], own: dict[str, Statistic]
) -> Table:
    found: Table = {}
    shown: dict[str, Tensor] = {}
    for site, each in observed.items():
        value = values[site]
        flat, seen = (t.reshape(len(t), -1) for t in (value.double(), each.seen))
        for name, number in _statistics(each, flat, seen):
            found[site, name] = number
        shown[site] = value
        if own and not bool(each.seen.all()):
            shown[site] = torch.where(each.seen, value.double(), float("nan"))
    given: Any = next(iter(shown.values())) if len(shown) == 1 else shown
    for name, function in own.items():
        number = torch.as_tensor(function(given)).double().detach().cpu()
        if number.shape != () or number.isnan():
            raise ValueError(
                f'statistic "{name}" returned {number.tolist()!r:.80}, expected one number of a '
                "data set: leave out what is NaN, torch.nanmean(x)"
            )
        found["", name] = number
    return found


def _statistics(each: Observed, x: Tensor, seen: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Of (N, F) numbers, of which those that are ``seen`` count."""
    own = x[seen]
    if not len(own):
        return
    if each.kind == "categories":
        yield FREQUENCIES, _frequencies(each, x, seen)
        return
    for name, function in OF_KIND[each.kind].items():
        yield name, function(own).cpu()
    if each.kind == "zeros and ones" and x.shape[1] > 1:
        yield "sd of row means", _sd(_means(x, seen, 1)).cpu()
    if x.shape[1] > 1:
        yield FEATURES, _means(x, seen, 0).cpu()


def _means(x: Tensor, seen: Tensor, over: int) -> Tensor:
    """Means along a dimension, without those of which nothing is seen."""
    count = seen.sum(over)
    return torch.where(seen, x, 0.0).sum(over)[count > 0] / count[count > 0]


def _frequencies(each: Observed, x: Tensor, seen: Tensor) -> Tensor:
    """The share of each category of each column, one after the other."""
    count = int(each.values[each.seen].max()) + 2  # and those beyond, which the data do not have
    columns = x.clamp(0, count - 1)
    shares = [_means((columns == c).double(), seen, 0) for c in range(count)]
    return torch.cat(shares).cpu()


def _sd(values: Tensor) -> Tensor:
    return values.std(correction=min(1, len(values) - 1))  # of one number 0


def _over_mean(values: Tensor) -> Tensor:
    return _sd(values).square() / values.mean().clamp_min(torch.finfo(values.dtype).tiny)


OF_KIND: dict[Kind, dict[str, Callable[[Tensor], Tensor]]] = {
    "reals": {
        "mean": torch.mean, "sd": _sd, "least": torch.min, "largest": torch.max,
    },
    "zeros and ones": {"mean": torch.mean},
    "counts": {
        "mean": torch.mean,
        "share of zeros": lambda v: (v == 0).double().mean(),
        "variance over mean": _over_mean,
        "coefficient of variation": lambda v: (_over_mean(v) / v.mean().clamp_min(1e-300)).sqrt(),
        "largest": torch.max,
    },
}  # fmt: skip
