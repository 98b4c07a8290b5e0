r"""The gradient laboratory: what an objective's gradient is made of, measured at one point.

At fixed parameters and a fixed batch the gradient g of a draw is a random vector.  Of each group of
parameters the report says how long its mean is, how far draws lie from it, and how far it lies from
the mean of another objective,

.. math::
    \|E g\|, \qquad \operatorname{tr} \operatorname{Cov} g, \qquad
    \mathrm{SNR} = \frac{\|E g\|}{\sqrt{\operatorname{tr} \operatorname{Cov} g}}, \qquad
    \mathrm{bias} = \|E g - E g_{\mathrm{ref}}\|.

An averaged vector is too long by the noise left in it.  So draws are averaged in equal blocks, and
products of *different* blocks estimate squared lengths without that excess:
:math:`\|E g\|^2 = E\, \bar g_b^\top \bar g_c`, b ≠ c.  All that is needed of the blocks is the
matrix of these products, one a group; leaving out a block at a time gives the standard errors.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro.infer.elbo import ELBO
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from pyro_vae.compiling import entries_of
from pyro_vae.engine import NO_PRIOR, Parameters, trainable
from pyro_vae.engines import make_step, translate
from pyro_vae.inputs import as_rows
from pyro_vae.noise import NoiseMode, keyed, seeded
from pyro_vae.numerics import require_possible_data
from pyro_vae.objectives.base import EMPTY, Objective, State
from pyro_vae.program import Rows, materialize, num_rows, require_program
from pyro_vae.progress import Record, reporter
from pyro_vae.steps import Ask, PyroStep, Step, blame
from pyro_vae.traces import DataScale, log_density, sites_of, trace_program

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

BLOCKS = 25
ROUNDS = 7  # of timing
MOST_ENTRIES = 1 << 22  # of all intermediate tensors, where draws are taken as one batch

Groups = dict[str, list[str]]  # group -> names of its parameters


@dataclass(frozen=True)
class GradientReport:
    """What :func:`gradient_report` returns.

    Attributes:
        dataset: an xarray data set; over (group, objective) ``norm``, ``variance``, ``snr`` and
            ``bias``, standard errors of variance and snr, and ``bias_p``; over (objective)
            ``seconds`` and ``multiplications``.  Attributes name the reference and the draws.
    """

    dataset: xr.Dataset

    def table(self) -> pd.DataFrame:
        """One row a group and objective; gradients are of the loss in nats per datum.

        ``norm`` is the length of the mean gradient, ``variance`` that of one draw summed over the
        group's parameters, ``snr`` their ratio; ``±`` are standard errors.  ``bias`` is the
        distance to the reference's mean gradient; ``bias p`` is how probable a distance as large
        would be between equal means.  ``seconds`` and ``multiplications`` (those in matrix
        products) are of one gradient of the whole batch, all groups together.
        """
        columns = {
            "norm": "norm", "variance": "variance", "variance_standard_error": "variance ±",
            "snr": "snr", "snr_standard_error": "snr ±", "bias": "bias", "bias_p": "bias p",
            "seconds": "seconds", "multiplications": "multiplications",
        }  # fmt: skip
        frame = self.dataset.to_dataframe(dim_order=["group", "objective"])
        return frame[list(columns)].rename(columns=columns)

    def plot(self, path: str | Path | None = None) -> Any:
        """Signal-to-noise, variance and bias by group; returns the figure, saves it to ``path``."""
        from pyro_vae.plotting import gradient_dots

        return gradient_dots(self.dataset, path)

    def save(self, path: str | Path) -> None:
        """Write the data set as netCDF; ``xarray.open_dataset`` reads it anywhere."""
        self.dataset.to_netcdf(path, engine="h5netcdf")

    def __repr__(self) -> str:
        about = self.dataset.attrs
        return (
            f"gradients of the loss per datum, {about['num_draws']} draws for a batch of "
            f"{about['rows']} rows; bias against {about['reference']}\n"
            + self.table().to_string(float_format="{:.3g}".format)
        )


def gradient_report(
    program: nn.Module,
    x: Any,
    objectives: Sequence[Objective | ELBO],
    *,
    reference: Objective | ELBO | None = None,
    num_draws: int = 1000,
    warmup: int = 100,
    groups: Mapping[str, str] | Callable[[str], str] | None = None,
    seed: int = 0,
    progress: bool | Callable[[Record], Any] | None = None,
) -> GradientReport:
    r"""Bias, variance, signal-to-noise and cost of each objective's gradient, for this program.

    Nothing is trained.  Parameters and the batch stay fixed, so all that varies is the noise that
    the objectives draw.

    Args:
        program: the program, trained as far as the question asks for: estimators rank differently
            early and late.
        x: one minibatch (a ``Data``, a tensor, an array or a dict, (B, ...)), such as
            ``data.train[:100]``.
        objectives: of ``pv.objectives``, or Pyro's ELBOs.
        reference: what bias is measured against (default: the first of ``objectives``).  Two
            objectives with different targets, such as ``AEVB()`` and ``IWAE(10)``, differ by
            more than bias: take one of the same target, such as ``IWAE(10)`` for ``DReG(10)``.
            Under discrete latents ``TraceEnum_ELBO()`` is an exact one.
        num_draws: of each gradient, rounded down to a multiple of 25.
        warmup: draws by which an objective's memory (a running baseline, KL warm-up) is brought
            forward first; then it is held, so that draws are independent.
        groups: parameter name -> name of its group.  By default "model" holds what log p(x, z)
            depends on at given latents, "guide" what the guide does, "both" what they share.
        seed: of the noise.
        progress: None shows a line where stderr is a terminal.

    Returns:
        :class:`GradientReport`, with ``table()`` and ``plot(path)``.

    Raises:
        ValueError: an objective whose draws follow a Markov chain; fewer than 50 draws; a gradient
            that is not finite; or what the objectives themselves refuse.

    Gradients are those of the loss, summed over the batch and divided by its rows, without the
    optimizer's clipping or weight prior.  Memory holds 25 gradients each of two objectives.

    ``bias p`` compares the squared distance of the means with what its blocks let expect, by an F
    distribution whose degrees of freedom match mean and variance (Satterthwaite's), because a
    group may hold one parameter or a million that move together.

    Source: on signal-to-noise, Rainforth et al. (2018), arXiv:1802.04537, which takes the ratio of
    each parameter by itself; here it is one ratio for a group.

    Example:
        >>> import pyro_vae as pv
        >>> from pyro_vae.models import bernoulli_vae
        >>> digits = pv.datasets.load("digits")
        >>> vae = bernoulli_vae.build(digits.dim, latent_dim=2, hidden_dim=16)
        >>> both = [pv.objectives.AEVB("A"), pv.objectives.AEVB("B")]
        >>> report = pv.gradient_report(vae, digits.train[:20], both, num_draws=50)
        >>> list(report.table().columns[:3])
        ['norm', 'variance', 'variance ±']
    """
    require_program(program)
    x = as_rows(x, program)
    materialize(program, x)
    require_possible_data(program, x)
    chosen = _named(objectives)
    (name_of_reference, against), *_ = (
        chosen if reference is None else _named([reference])
    ).items()
    if num_draws < 2 * BLOCKS:
        raise ValueError(
            f"num_draws is {num_draws}, expected at least {2 * BLOCKS}: they are averaged in "
            f"{BLOCKS} blocks"
        )
    num_draws -= num_draws % BLOCKS
    parts = _parts(program, x, groups)
    order = {name_of_reference: against, **chosen}
    labs = {name: _Lab(program, x, objective, seed, warmup) for name, objective in order.items()}
    rows: dict[str, dict[str, dict[str, float]]] = {}
    with reporter(progress, len(labs) * num_draws * num_rows(x), label="gradients") as report:
        told, started = 0, time.perf_counter()

        def tell() -> None:
            nonlocal told
            told += num_draws // BLOCKS
            seconds = time.perf_counter() - started
            report(Record(told, told * num_rows(x), seconds, {}, program))

        first: _Draws | None = None
        for name, lab in labs.items():
            draws = lab.draw(num_draws, parts, tell)
            first = first or draws
            rows[name] = {group: _statistics(draws, first, group) for group in parts}
    return GradientReport(
        _dataset(
            {name: rows[name] for name in chosen},
            _costs({name: labs[name] for name in chosen}),
            {
                "reference": name_of_reference,
                "num_draws": num_draws,
                "rows": num_rows(x),
                "groups": "; ".join(f"{g}: {', '.join(parts[g])}" for g in sorted(parts)),
            },
        )
    )


def _named(objectives: Sequence[Any]) -> dict[str, Objective | ELBO]:
    if not isinstance(objectives, Sequence) or not objectives:
        raise TypeError(
            f"objectives is {objectives!r}, expected a list of at least one, such as "
            "[pv.objectives.AEVB(), pv.objectives.IWAE(10)]"
        )
    translated = [translate(objective) for objective in objectives]
    names = [repr(o) if isinstance(o, Objective) else f"{type(o).__name__}()" for o in translated]
    if len(set(names)) < len(names):
        raise ValueError(f"objectives are {names}, expected different ones")
    for name, objective in zip(names, translated, strict=True):
        if getattr(objective, "refresh_every", 0):
            raise ValueError(
                f"the gradients of {name} follow a Markov chain, so they are no independent draws "
                "and say nothing about variance: leave it out"
            )
    return dict(zip(names, translated, strict=True))


# --- groups of parameters -------------------------------------------------------------------------


def _parts(
    program: nn.Module, x: Rows, groups: Mapping[str, str] | Callable[[str], str] | None
) -> Groups:
    """Group -> parameters, in the order of the program's."""
    names = list(trainable(program))
    if groups is None:
        group_of: Callable[[str], str] = _roles(program, x).__getitem__
    elif callable(groups):
        group_of = groups
    else:
        missing = [name for name in names if name not in groups]
        if missing:
            raise ValueError(
                f'groups has no entry for parameter "{missing[0]}", expected one for each of '
                f"{names}"
            )
        group_of = groups.__getitem__
    parts: Groups = {}
    for name in names:
        parts.setdefault(str(group_of(name)), []).append(name)
    return parts


def _roles(program: nn.Module, x: Rows) -> dict[str, str]:
    """Parameter -> "model", "guide", "both" or "neither", by what depends on it."""
    params = trainable(program)
    with torch.enable_grad(), NoiseMode(keyed(0)), seeded(0):
        guide, model = trace_program(program, x, reparameterize=False)
        drawn, _ = trace_program(program, x)  # a point's place has no density, and is the guide's
        values = [site["value"] for site in sites_of(drawn).values() if not site["is_observed"]]
        by_model = [log_density(site) for site in sites_of(model).values()]
        by_guide = [log_density(site) for site in sites_of(guide).values()] + values

    def reached(terms: list[Tensor]) -> set[str]:
        terms = [term.sum() for term in terms if term.requires_grad]
        if not terms:
            return set()
        grads = torch.autograd.grad(
            torch.stack(terms).sum(), list(params.values()), allow_unused=True, retain_graph=True
        )
        return {name for name, grad in zip(params, grads, strict=True) if grad is not None}

    in_model, in_guide = reached(by_model), reached(by_guide)
    words = {(True, False): "model", (False, True): "guide", (True, True): "both"}
    return {n: words.get((n in in_model, n in in_guide), "neither") for n in params}


# --- drawing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draws:
    """What is kept of the gradients of one objective, by group.

    Attributes:
        blocks: (BLOCKS, parameters): means of equal blocks of draws.
        first: (parameters,): the first draw; deviations from it lose no digits to a large mean.
        squares: (BLOCKS,): squared deviations of a block's draws from it, summed.
        size: draws in a block.
        precision: relative, of a gradient.
    """

    blocks: dict[str, Tensor]
    first: dict[str, Tensor]
    squares: dict[str, Tensor]
    size: int
    precision: float


class _Lab:
    """One objective at work on a program and a batch that stay as they are."""

    def __init__(
        self, program: nn.Module, x: Rows, objective: Objective | ELBO, seed: int, warmup: int
    ) -> None:
        self.program, self.x, self.seed = program, x, seed
        self.params: Parameters = trainable(program)
        own = isinstance(objective, Objective)
        self.state: State = objective.init(program, x) if own else EMPTY  # type: ignore[union-attr]
        like = next(iter(self.params.values()))
        self.weight = torch.ones(num_rows(x), dtype=like.dtype, device=like.device)
        ask = Ask(False, x, self.weight, self.state, (seed, 0, 0))
        idle = torch.optim.SGD(list(self.params.values()))  # gradients alone: it is never stepped
        self.step: Step = make_step(
            program, objective, "eager", ask, optimizer=idle, prior=NO_PRIOR
        )
        if isinstance(self.step, PyroStep):
            self.step.use(program)
        with torch.no_grad(), seeded(seed), DataScale() as scale:
            trace_program(program, x)
        self.count = num_rows(x) * scale.value
        if own and self.state.shared:
            for i in range(warmup):
                _, sums = self._step(1, i)
                means = {name: v / sums["weight"] for name, v in sums.items() if name != "weight"}
                shared = objective.advance(self.state.shared, means)  # type: ignore[union-attr]
                self.state = self.state._replace(shared=shared)

    def _step(self, *key: int) -> tuple[Parameters, dict[str, Tensor]]:
        kept = {name: p.grad for name, p in self.params.items()}  # Pyro's own ELBOs write there
        try:
            return self.step.grads(self.params, self.x, self.weight, self.state, (self.seed, *key))
        finally:
            for name, parameter in self.params.items():
                parameter.grad = kept[name]

    def _batched(self, start: int, count: int) -> Parameters:
        """Gradients of so many draws, (draws, ...), at the noise that each has by itself."""
        if count > 1:
            lifted = self.step.graph.grads  # type: ignore[attr-defined]
            drawn = [lifted.draw((self.seed, 0, i)) for i in range(start, start + count)]
            noise = [torch.stack(each) for each in zip(*drawn, strict=True)]
            args = pytree.tree_leaves((self.params, self.x, self.weight, *self.state))
            with torch.no_grad():
                run = torch.vmap(lambda *noise: lifted.flat(*args, *noise))
                return lifted.unflatten(run(*noise))[0]
        return {name: g.detach()[None] for name, g in self._step(0, start)[0].items()}

    def _at_once(self, size: int) -> int:
        """How many draws of a block to take as one batch: small graphs are mostly overhead."""
        graph = getattr(self.step, "graph", None)
        if graph is None or graph.grads.kept or not graph.grads.noise:
            return 1
        return max(1, min(size, MOST_ENTRIES // entries_of(graph.grads)))

    def draw(self, num_draws: int, parts: Groups, tell: Callable[[], None]) -> _Draws:
        """So many gradients, a block at a time."""
        size = num_draws // BLOCKS
        most = self._at_once(size)
        first: dict[str, Tensor] = {}
        sums: dict[str, list[Tensor]] = {group: [] for group in parts}
        squares: dict[str, list[Tensor]] = {group: [] for group in parts}
        for block in range(BLOCKS):
            for start in range(0, size, most):
                found = self._batched(block * size + start, min(most, size - start))
                for group, names in parts.items():
                    flat = [found[name].double() for name in names]
                    flat = [each.reshape(len(each), -1) for each in flat]
                    g = torch.cat(flat, 1) / self.count  # (draws, parameters)
                    first.setdefault(group, g[0].clone())
                    deviation = g - first[group]
                    square = deviation.square().sum()
                    if not math.isfinite(float(square)):
                        self._blame(block * size + start, deviation)
                    if start == 0:
                        sums[group].append(torch.zeros_like(g[0]))
                        squares[group].append(torch.zeros_like(square))
                    sums[group][-1] += deviation.sum(0)
                    squares[group][-1] += square
            tell()
        blocks = {group: torch.stack(each) / size + first[group] for group, each in sums.items()}
        spread = {group: torch.stack(each) for group, each in squares.items()}
        return _Draws(blocks, first, spread, size, torch.finfo(self.weight.dtype).eps)

    def _blame(self, start: int, deviation: Tensor) -> None:
        """Raises ValueError for the first of these draws that is not finite."""
        draw = start + int((~deviation.isfinite()).any(1).nonzero()[0])
        found, _ = self._step(0, draw)
        where = blame(self.program, self.x, found, (self.seed, 0, draw))
        raise ValueError(f"draw {draw} of the gradient is not finite: {where}")

    def seconds(self, i: int) -> float:
        """How long one gradient takes."""
        started = time.perf_counter()
        _, sums = self._step(2, i)
        float(sums["weight"])  # waits for a device
        return time.perf_counter() - started

    def multiplications(self) -> int:
        """How many one gradient takes in matrix products."""
        with FlopCounterMode(display=False) as counter:
            self._step(2, 0)
        return counter.get_total_flops() // 2  # a multiplication and an addition


def _costs(labs: dict[str, _Lab]) -> dict[str, dict[str, float]]:
    """Of one gradient; objectives take turns, so that a noisy machine is noisy for all of them."""
    seconds = [{name: lab.seconds(i) for name, lab in labs.items()} for i in range(ROUNDS)]
    return {
        name: {
            "seconds": statistics.median(each[name] for each in seconds),
            "multiplications": float(lab.multiplications()),
        }
        for name, lab in labs.items()
    }


# --- statistics -----------------------------------------------------------------------------------


def _products(blocks: Tensor) -> np.ndarray:
    return (blocks @ blocks.T).cpu().numpy()


def _squared_length(products: np.ndarray) -> float:
    """Of the mean vector: products of different blocks, so without what noise adds."""
    b = len(products)
    return float((products.sum() - products.trace()) / (b * (b - 1)))


def _statistics(draws: _Draws, reference: _Draws, group: str) -> dict[str, float]:
    blocks, size = draws.blocks[group], draws.size
    of_means, of_deviations = _products(blocks), _products(blocks - draws.first[group])
    squares = draws.squares[group].cpu().numpy()

    def variance(keep: np.ndarray) -> float:
        n = len(keep) * size
        mean = of_deviations[np.ix_(keep, keep)].mean()  # the squared length of its average
        return float(max(squares[keep].sum() - n * mean, 0.0) / (n - 1))

    def snr(keep: np.ndarray) -> float:
        signal = max(_squared_length(of_means[np.ix_(keep, keep)]), 0.0)
        noise = variance(keep)
        return math.sqrt(signal / noise) if noise else math.inf if signal else math.nan

    everything = np.arange(BLOCKS)
    norm = math.sqrt(max(_squared_length(of_means), 0.0))
    bias, p = _bias(_products(blocks - reference.blocks[group]), blocks.shape[1])
    return {
        "norm": norm,
        "variance": variance(everything),
        "variance_standard_error": _jackknife(variance),
        "snr": snr(everything),
        "snr_standard_error": _jackknife(snr),
        "bias": bias if bias > draws.precision * norm else 0.0,  # sums in another order
        "bias_p": math.nan if draws is reference else p,
    }


def _jackknife(statistic: Callable[[np.ndarray], float]) -> float:
    """Standard error, by leaving out a block at a time."""
    values = np.array([statistic(np.delete(np.arange(BLOCKS), b)) for b in range(BLOCKS)])
    if not np.isfinite(values).all():
        return math.nan
    return math.sqrt((BLOCKS - 1) / BLOCKS * float(((values - values.mean()) ** 2).sum()))


def _bias(products: np.ndarray, num_parameters: int) -> tuple[float, float]:
    r"""Length of the mean difference, and how probable one as long is where there is none.

    With S the covariance of a block's difference, the squared length of the average over B blocks
    has the mean tr S / B without bias, and about the law of tr(S) / B times F(f, f (B - 1)) with
    f = (tr S)^2 / tr S^2, because products of different blocks have the variance tr S^2.
    """
    from scipy.stats import f as F

    b = len(products)
    squared = products.mean()
    trace = (products.trace() - b * squared) / (b - 1)  # of S
    length = math.sqrt(max(_squared_length(products), 0.0))
    if trace <= 0.0:
        return length, 1.0 if squared == 0.0 else 0.0
    pairs = products[np.triu_indices(b, 1)]
    freedom = min(max(trace**2 / float(pairs.var(ddof=1)), 1.0), float(num_parameters))
    return length, float(F.sf(squared / (trace / b), freedom, freedom * (b - 1)))


def _dataset(
    rows: dict[str, dict[str, dict[str, float]]],
    costs: dict[str, dict[str, float]],
    attributes: dict[str, Any],
) -> xr.Dataset:
    import xarray as xr

    objectives, groups = list(rows), list(next(iter(rows.values())))
    variables: dict[str, Any] = {
        name: (("group", "objective"), [[rows[o][g][name] for o in objectives] for g in groups])
        for name in rows[objectives[0]][groups[0]]
    }
    for name in ("seconds", "multiplications"):
        variables[name] = (("objective",), [costs[o][name] for o in objectives])
    return xr.Dataset(
        variables,
        coords={"group": groups, "objective": objectives},
        attrs={**attributes, "unit": "gradients of nats per datum"},
    )
