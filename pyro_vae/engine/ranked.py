r"""Gradients of a batch whose rows lie with several ranks.

Each rank computes those of its rows, and what is added up is the gradient of the whole batch: as
it is where a loss is a sum over rows, and by each rank's share of the rows where a plate scales it
to all N data.

So is the noise the whole batch's: of a draw with a dimension of rows every rank draws that of all
rows and keeps its own, and a draw without one (of latents that all data share) is the same on all.
W processes then take the steps of one, up to the order of a sum.  Which dimension holds the rows
is seen from two runs with other numbers of rows.  Where that does not tell, and of gamma draws and
others that no noise from outside can serve, ranks draw their own, which is as good and other
numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_vae.densities.plates import name_of_rows_plate
from pyro_vae.densities.traces import DataScale
from pyro_vae.engine.choosing import (
    PRECISION,
    gradient_source,
    in_full,
    pays,
    tied_rows,
    unless_asked,
)
from pyro_vae.engine.functions import NO_PRIOR, WeightPrior, norm_of
from pyro_vae.engine.learner import Ask, Learner, stack
from pyro_vae.engine.ranks import Ranks
from pyro_vae.engine.sources import GradientSource, GraphSource, HandlerSource
from pyro_vae.engine.steps import OneByOne, Step
from pyro_vae.engine.svi import SVISource
from pyro_vae.graphs import compiling
from pyro_vae.graphs.lifted import Refusal
from pyro_vae.noise import LOOK, Key, Noise, keyed
from pyro_vae.objectives.base import Objective, State
from pyro_vae.program.calling import left_as_it_was, trainable
from pyro_vae.program.rows import Rows, map_rows, num_rows


class Place(NamedTuple):
    """Where the rows of a batch are in a draw: in a dimension that holds all of them so often."""

    shape: tuple[int, ...]  # as handlers draw it; in a graph the same numbers may have another
    dim: int
    times: int  # particles come first: all rows, and again all rows; 0 of a draw without rows


SHARED = Place((), 0, 0)


def step_among(
    ranks: Ranks,
    learner: Learner,
    engine: str,
    ask: Ask,
    *,
    prior: WeightPrior,
    num_steps: int,
    replicas: int = 0,
    precision: str = PRECISION,
) -> Step:
    """The step of one of several ranks, by the engine that a single process would take.

    Update and gradient are apart, for the sum over ranks lies between them: the update is the
    optimizer's own.

    Args:
        ranks: this process among the others.
        learner: the one, or the first of several that are alike.
        engine: by name.
        ask: an example with this rank's rows.
        prior: of the weights.
        num_steps: the budget.
        replicas: how many learners, which several ranks take one after another.
        precision: of large matrix products.

    Raises:
        ValueError: what ties the rows of a batch together, as a batch normalization does.
    """
    if tied := tied_rows(learner, ask):
        raise ValueError(
            f"{tied}, so {ranks.size} processes, each with a part of it, would not train what one "
            "does: use a layer that looks at each row by itself, as nn.LayerNorm or nn.GroupNorm "
            "do, or train in one process"
        )
    program, objective = learner.program, learner.objective
    own: GradientSource = (
        in_full(precision, SVISource(program, objective, prior))
        if engine == "pyro"
        else gradient_source(program, objective, ask.x, ask.state, prior, precision)
    )
    if isinstance(own, GraphSource) and isinstance(objective, Objective):
        own = _perhaps_compiled(own, learner, objective, engine, ask, num_steps)
    source = RankedSource(own, ranks, Draws(program, objective, ask, ranks))
    return unless_asked(engine, OneByOne(source))


def _perhaps_compiled(
    source: GraphSource,
    learner: Learner,
    objective: Objective,
    engine: str,
    ask: Ask,
    num_steps: int,
) -> GraphSource:
    graph = source.graph
    if not (engine == "compiled" or (engine == "auto" and pays(graph, objective, num_steps))):
        return source
    params = {name: p.detach() for name, p in trainable(learner.program).items()}
    code = compiling.compiled(graph.grads, params, *ask[1:3], *ask.state)
    if isinstance(code, Refusal):
        compiling.warn_not_compiled(str(code))
        return GraphSource(graph, f"not compiled: {code}")
    made = GraphSource(dataclasses.replace(graph, grads=code))
    made.engine = "compiled"
    return made


class Draws:
    """Which dimension of each draw of an objective on a program holds the rows of a batch.

    Attributes:
        scaled: whether a plate scales the loss to all data.
    """

    def __init__(
        self, program: nn.Module, objective: Objective | ELBO, ask: Ask, ranks: Ranks
    ) -> None:
        self.ranks = ranks
        self.batch = self.whole = 0  # rows of a batch, and those of them that are drawn for
        self._at: dict[bool, list[Place | None]] = {}
        self.refresh = False
        ours = isinstance(objective, Objective)
        source: Any = (
            HandlerSource(program, objective, NO_PRIOR, "")
            if isinstance(objective, Objective)
            else SVISource(program, objective, NO_PRIOR)
        )
        more = torch.arange(num_rows(ask.x) + 1).clamp_max(num_rows(ask.x) - 1)
        params = {name: p.detach() for name, p in trainable(program).items()}
        kinds = [False, True] if getattr(objective, "refresh_every", 0) else [False]
        for refresh in kinds:
            asked: list[list[Noise]] = []
            for x, state in ((ask.x, ask.state), _rows_at(more, ask.x, ask.state)):
                weight = ask.weight.new_ones(num_rows(x))
                source.noise, found = _recorder()
                plate = None if ours else name_of_rows_plate(program, x)
                with left_as_it_was(program, parameters=False), DataScale(plate) as scale:
                    called = source.refresh if refresh else source.grads
                    called(params, x, weight, state, LOOK)
                asked.append(found)
                if not refresh:
                    self.scaled = scale.value != 1.0
            self._at[refresh] = _rows_of_draws(asked[0], asked[1], num_rows(ask.x))
        for parameter in program.parameters():
            parameter.grad = None

    def __call__(self, *key: int) -> Callable[[int, Noise], Tensor]:
        """This rank's noise for a key whose third number is the rank."""
        own, common = keyed(*key), keyed(*key[:2], 0, *key[3:])
        at = self._at[self.refresh]

        def source(index: int, noise: Noise) -> Tensor:
            place = at[index] if index < len(at) else None
            if place is None:
                return own(index, noise)
            if place == SHARED:
                return common(index, noise)
            like, dim, times = place
            shape = list(like if math.prod(noise.shape) == math.prod(like) else noise.shape)
            mine, shape[dim] = shape[dim] // times, times * self.whole
            drawn = common(index, noise._replace(shape=tuple(shape)))
            places = self.ranks.places(self.batch)[:mine].clamp_max(self.whole - 1)
            starts = torch.arange(times)[:, None] * self.whole
            at_once = (starts + places).flatten().to(drawn.device)
            return drawn.index_select(dim, at_once).reshape(noise.shape)

        return source


class RankedSource(GradientSource):
    """The gradients of a whole batch, of which this rank has a part of the rows.

    Asked with that part of the rows, and the weight and state of all.
    """

    def __init__(self, own: GradientSource, ranks: Ranks, draws: Draws) -> None:
        self._own, self._ranks, self._draws = own, ranks, draws
        self.engine, self.reason = own.engine, own.reason
        self.graph = getattr(own, "graph", None)
        own.noise = draws

    def on(self, program: nn.Module) -> RankedSource:
        return RankedSource(self._own.on(program), self._ranks, self._draws)

    def grads(self, params, x, weight, state, key):
        parts, share = self._mine(x, weight, state, key, refresh=False)
        grads, sums = self._own.grads(params, *parts)
        self._ranks.failing = lambda: share > 0 and not all(map(torch.isfinite, sums.values()))
        names, stacked = stack({n: v for n, v in sums.items() if n != "grad_norm"})
        if not share:  # no row of its own: copies stood in for them
            grads = {n: torch.zeros_like(g) for n, g in grads.items()}
            stacked = torch.zeros_like(stacked)
        if self._draws.scaled:
            grads = {n: g * share for n, g in grads.items()}
        # The one place where ranks add up theirs: between gradients and update.
        *added, total = self._ranks.total([*grads.values(), stacked])
        grads = dict(zip(grads, added, strict=True))
        sums = dict(zip(names, total.unbind(), strict=True))
        return grads, sums | {"grad_norm": norm_of(grads) * sums["weight"]}

    def refresh(self, params, x, weight, state, key):
        parts, share = self._mine(x, weight, state, key, refresh=True)
        rows, sums = self._own.refresh(params, *parts)
        names, stacked = stack(sums)
        if not share:
            stacked = torch.zeros_like(stacked)
        (total,) = self._ranks.total([stacked])
        rows = self._ranks.gathered(rows, len(weight))
        return rows, dict(zip(names, total.unbind(), strict=True))

    def _mine(self, x: Rows, weight: Tensor, state: State, key: Key, *, refresh: bool) -> Any:
        """What this rank's own source is asked, and its share of the rows."""
        count = int(weight.sum())
        ask = self._ranks.own(Ask(refresh, x, weight, state, key))
        self._draws.refresh = refresh
        # Pyro's SVI is given no row that only fills up a batch.
        self._draws.batch = len(weight)
        self._draws.whole = count if isinstance(self._own, SVISource) else len(weight)
        share = float(ask.weight.sum()) / count
        if not share:
            ask = ask._replace(weight=torch.ones_like(ask.weight))
        key = (*key[:2], self._ranks.rank, *key[3:])
        return (x, ask.weight, ask.state, key), share


def _rows_at(index: Tensor, x: Rows, state: State) -> tuple[Rows, State]:
    rows = {n: v[index.to(v.device)] for n, v in state.rows.items()}
    return map_rows(lambda t: t[index.to(t.device)], x), State(rows, state.shared)


def _recorder() -> tuple[Callable[..., Any], list[Noise]]:
    """A source of noise that notes what is asked for."""
    found: list[Noise] = []

    def noise(*key: int) -> Callable[[int, Noise], Tensor]:
        source = keyed(*key)

        def drawn(index: int, asked: Noise) -> Tensor:
            found.append(asked)
            return source(index, asked)

        return drawn

    return noise, found


def _rows_of_draws(few: list[Noise], more: list[Noise], number: int) -> list[Place | None]:
    """By draw: where the rows are, of which ``few`` had so many and ``more`` one more.

    None where that is unclear.
    """
    if [n.kind for n in few] != [n.kind for n in more]:
        return []
    found: list[Place | None] = []
    for a, b in zip(few, more, strict=True):
        if a.shape == b.shape:
            found.append(SHARED)
            continue
        pairs = list(zip(a.shape, b.shape, strict=False))
        differ = [dim for dim, (one, other) in enumerate(pairs) if one != other]
        times = a.shape[differ[0]] // number if differ else 0
        clear = len(a.shape) == len(b.shape) and len(differ) == 1
        clear = clear and pairs[differ[0]] == (times * number, times * (number + 1))
        found.append(Place(a.shape, differ[0], times) if clear else None)
    return found
