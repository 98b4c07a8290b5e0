r"""A whole training step as one graph: gradients, their checks, and the update in place.

.. code-block:: text

    (params, x, weight, rows, shared, noise, numbers, alive, count, optimizer's state) -> sums

Parameters and the optimizer's state are written in place.  A step whose loss or gradient is not
finite writes nothing, and its sums say so; neither does any step after it, so several can be
prepared and run before Python looks at the sums of the first.  Python is left with drawing noise,
choosing rows and reading a handful of numbers, and does each for several steps in a row: between
two large matrix products, which sweep the caches, it takes five times as long.

Replicas are the same graph under ``vmap``: every tensor has a leading dimension of R, and the
programs and optimizers of the R loops hold views of what is stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyro_vae.engine.capture import Graph, capture_unit
from pyro_vae.engine.functions import sums_of
from pyro_vae.engine.learner import Answer, Ask, Learner, NotFinite, means_of, stack
from pyro_vae.engine.steps import Step
from pyro_vae.engine.updates import Rules, bind, numbers_of, rebind, unbind
from pyro_vae.graphs.compiling import compiled, machine_code
from pyro_vae.graphs.lifted import Lifted, Refusal
from pyro_vae.noise import keyed, seeded
from pyro_vae.objectives.base import Objective
from pyro_vae.program.calling import trainable
from pyro_vae.torch_internals import sources_forgotten, traced

Flat = Callable[..., Sequence[Tensor]]

AT_ONCE = 32  # updates that are prepared together, at most; and what their rows take
BYTES_AT_ONCE = 4 << 20
SECONDS_AT_ONCE = 0.1


def _update_function(
    lifted: Lifted, num_params: int, rule: Rules, clip: float | None
) -> tuple[Callable[..., list[Tensor]], list[str]]:
    """Flat tensors -> new parameters, count and state, stacked sums; once run, the sums' names."""
    names: list[str] = []
    width = len(rule.names)

    def update(num_inputs: int, *tensors: Tensor) -> list[Tensor]:
        inputs, (now, alive, count, *state) = tensors[:num_inputs], tensors[num_inputs:]
        numbers = now.unbind()
        grads, sums = lifted.unflatten(lifted.graph(*inputs))
        names[:] = sums
        norm = sums["grad_norm"] / sums["weight"]
        good = alive & norm.isfinite() & sums["loss"].isfinite()
        share = 1.0 if clip is None else (clip / norm).clamp_max(1.0)
        given = list(zip(inputs[:num_params], batched(state, width, num_params), strict=True))
        made = [
            rule.moved(i, p, grad * share, old, numbers)
            for i, ((p, old), grad) in enumerate(zip(given, grads.values(), strict=True))
        ]
        # A sum is a number where all of its terms are.
        bad = ~torch.stack([p.sum(dtype=_wide(p)).isfinite() for p, _ in made])
        burst = good & bad.any()
        good = good & ~burst
        named = -(1 + bad.int().argmax()) * sums["weight"]  # as `require_finite` reads it
        sums = {**sums, "grad_norm": torch.where(burst, named, sums["grad_norm"])}
        moved = [torch.where(good, new, p) for (p, _), (new, _) in zip(given, made, strict=True)]
        memory = [
            torch.where(good, n, o)
            for (_, old), (_, new) in zip(given, made, strict=True)
            for n, o in zip(new, old, strict=True)
        ]
        return [*moved, good, torch.where(good, count + 1, count), *memory, stack(sums)[1]]

    return update, names


def batched(state: Sequence[Tensor], width: int, most: int) -> list[tuple[Tensor, ...]]:
    """The optimizer's tensors, parameter by parameter."""
    if not width:
        return [()] * most
    return [tuple(state[i : i + width]) for i in range(0, len(state), width)]


def _wide(p: Tensor) -> torch.dtype:
    """In which a sum of many does not overflow."""
    return torch.promote_types(p.dtype, torch.float32)


def _in_place(graph: Flat, num_params: int, num_inputs: int) -> Flat:
    """The same function, writing what is new where the old was."""

    def run(*tensors: Tensor) -> list[Tensor]:
        *new, sums = graph(*tensors)
        old = [*tensors[:num_params], *tensors[num_inputs + 1 :]]
        for target, value in zip(old, new, strict=True):
            target.copy_(value)
        return [sums]

    return run


def fuse(
    graph: Graph,
    learner: Learner,
    rule: Rules,
    ask: Ask,
    *,
    replicas: int = 0,
    machine: bool = True,
) -> FusedStep | Refusal:
    """The step of a captured graph with its update inside, compiled where ``machine`` says so.

    Args:
        graph: the captured step of one program, with the prior of its weights.
        learner: that program with its objective, and the largest norm of a gradient.
        rule: the optimizer's update.
        ask: what is asked for, as an example.
        replicas: R programs side by side, each tensor stacked; 0 is one program as it is.
        machine: compile, or run operation by operation.
    """
    program, objective = learner.program, learner.objective
    kept = graph.grads.kept + (graph.refresh.kept if graph.refresh else ())
    if replicas and kept:
        return Refusal(
            f"{', '.join(kept)} draws by itself, which would be one draw for all of them"
        )
    params = [p.detach().clone() for p in trainable(program).values()]
    inputs = [*params, *pytree.tree_leaves(ask[1:4])]
    update, names = _update_function(graph.grads, len(params), rule, learner.clip)
    memory = [torch.ones_like(p) for p in params for _ in rule.names]
    numbers = params[0].new_full((rule.num_numbers,), 0.5)
    count = torch.zeros((), device=params[0].device)
    tensors = [*inputs, *graph.grads.draw(ask.key), numbers, count == 0, count, *memory]
    num_inputs = len(tensors) - len(memory) - 3
    update = partial(update, num_inputs)
    if replicas:
        tensors = [torch.stack([t] * replicas) for t in tensors]
        update = torch.vmap(update)
    # Tracing runs the draws that stay in the graph.
    with torch.no_grad(), seeded(*ask.key), sources_forgotten():
        code: Flat = _in_place(traced(update, *tensors), len(params), num_inputs)
        refresh: Any = None if graph.refresh is None else graph.refresh.run
        if machine:
            whole = traced(code, *[t.clone() for t in tensors])
            made = machine_code(whole, *tensors, kept=bool(kept))
            if isinstance(made, Refusal):
                return made
            code = made
        if refresh is not None and replicas:
            given = [*inputs, *graph.refresh.draw(ask.key)]  # type: ignore[union-attr]
            refresh = traced(torch.vmap(refresh), *[torch.stack([t] * replicas) for t in given])
    unit = None
    if machine and graph.refresh is not None and not replicas:
        unit = _compiled_unit(program, objective, ask)  # type: ignore[arg-type]
        if isinstance(unit, Refusal):
            return unit
    return FusedStep(
        graph, objective, rule, tuple(names), code, refresh, unit, bool(replicas), machine
    )


def _compiled_unit(program: nn.Module, objective: Objective, ask: Ask) -> Lifted | Refusal | None:
    """What a refresh calls over and over, where it is one function: quicker to compile than all."""
    if objective.unit is None:
        return None
    unit = capture_unit(program, objective, ask.x, ask.state)
    if isinstance(unit, Refusal):
        return unit
    params = {name: p.detach() for name, p in trainable(program).items()}
    return compiled(unit, params, ask.x, ask.state.rows)


class FusedStep(Step):
    """Gradients and update as one graph, for one learner or for replicas in lockstep."""

    reason = ""

    def __init__(self, graph, objective, rule, names, code, refresh, unit, stacked, machine):
        self.graph: Graph = graph
        self.objective: Objective = objective
        self.rule: Rules = rule
        self.names: tuple[str, ...] = names
        self.stacked: bool = stacked
        self.engine = "compiled" if machine else "eager"
        self._code: Flat = code
        self._refresh: Any = refresh
        self._kept = tuple(bool(g.kept) if g else False for g in (graph.grads, graph.refresh))
        self._unit: Lifted | None = unit

    def bind(self, learners: Sequence[Learner]) -> None:
        """Work in place on the parameters and the optimizers' states of these learners.

        Replicas' parameters and states become views of stacked tensors.
        """
        self._learners = learners
        bound = [
            bind(learner.optimizer, self.rule, [*learner.parameters.values()])
            for learner in learners
        ]
        params = [[p.detach() for p in learner.parameters.values()] for learner in learners]
        self._params, self._memory = params[0], bound[0]
        self._taken = [int(count) for count, *_ in bound]
        if self.stacked:
            self._params = [torch.stack(ps) for ps in zip(*params, strict=True)]
            self._memory = [torch.stack(ms) for ms in zip(*bound, strict=True)]
            for r, learner in enumerate(learners):
                for p, whole in zip(learner.parameters.values(), self._params, strict=True):
                    p.data = whole[r]
                own = [*learner.parameters.values()]
                rebind(learner.optimizer, self.rule, own, [whole[r] for whole in self._memory])
        lead = (len(learners),) if self.stacked else ()
        self._alive = torch.ones(lead, dtype=torch.bool, device=self._params[0].device)

    def release(self) -> None:
        for r, learner in enumerate(self._learners):
            own = [whole[r] for whole in self._memory] if self.stacked else self._memory
            unbind(learner.optimizer, self.rule, [*learner.parameters.values()], own)
            if self.stacked:  # a view would be saved with the parameters of all the others
                for p in learner.parameters.values():
                    p.data = p.data.clone()

    def answer(self, asks: Sequence[Sequence[Ask]]) -> list[list[Answer]]:
        if asks[0][0].refresh:
            return [[answer] for answer in self._refreshed([ask for (ask,) in asks])]
        numbers = self._numbers(len(asks[0]))
        prepared = [
            [*self._params, *self._given(self.graph.grads, each), now, self._alive, *self._memory]
            for each, now in zip(zip(*asks, strict=True), numbers, strict=True)
        ]
        for learner in self._learners:
            learner.whole = False
        sums = [
            self._run(self._code, ask, *tensors)[0]
            for ask, tensors in zip(asks[0], prepared, strict=True)
        ]
        return self._answers(asks, torch.stack(sums))

    def _answers(self, asks: Sequence[Sequence[Ask]], sums: Tensor) -> list[list[Answer]]:
        """Sums of (updates, replicas, names), or without replicas, as answers to each learner."""
        by_learner = sums.movedim(1, 0) if self.stacked else sums[None]
        numbers = by_learner.tolist()  # the one wait for a device
        answers = [
            [
                Answer(None, self.names, s, means_of(self.names, n))
                for s, n in zip(some.unbind(), many, strict=True)
            ]
            for some, many in zip(by_learner.unbind(), numbers, strict=True)
        ]
        for learner in self._learners:
            learner.whole = True
        for learner, its, found in zip(self._learners, asks, answers, strict=True):
            for number, (ask, answer) in enumerate(zip(its, found, strict=True)):
                try:
                    learner.require_finite(answer.means, ask)
                except NotFinite as error:
                    error.answers = found[:number]
                    raise
        return answers

    def most_at_once(self, asks: Sequence[Ask], seconds: float) -> int:
        """So many that neither memory nor a user who wants to stop them would notice.

        The number changes no result, so a clock may choose it.
        """
        size = sum(t.nbytes for t in pytree.tree_leaves(asks[0].x)) * len(self._learners)
        return max(
            1, min(AT_ONCE, BYTES_AT_ONCE // size, int(SECONDS_AT_ONCE * len(asks) / seconds))
        )

    def _numbers(self, updates: int) -> Sequence[Tensor]:
        """What each of the next updates takes from the optimizers."""
        found = []
        for _ in range(updates):
            self._taken = [taken + 1 for taken in self._taken]
            each = [
                numbers_of(learner.optimizer, self.rule, taken)
                for learner, taken in zip(self._learners, self._taken, strict=True)
            ]
            found.append(each if self.stacked else each[0])
        like = self._params[0]
        return torch.tensor(found, dtype=like.dtype, device=like.device).unbind()

    def _given(self, lifted: Lifted, asks: Sequence[Ask]) -> list[Tensor]:
        """Batch, state and noise; one tensor each for all replicas."""
        each = [[*pytree.tree_leaves(ask[1:4]), *lifted.draw(ask.key)] for ask in asks]
        return [torch.stack(ts) for ts in zip(*each, strict=True)] if self.stacked else each[0]

    def _refreshed(self, asks: Sequence[Ask]) -> list[Answer]:
        if self._unit is not None:
            return [self._by_units(self._unit, asks[0])]
        lifted: Any = self.graph.refresh
        results = self._run(self._refresh, asks[0], *self._params, *self._given(lifted, asks))
        each = zip(*[r.unbind() for r in results], strict=True) if self.stacked else [results]
        found = [(rows, *stack(sums)) for rows, sums in map(lifted.unflatten, each)]
        numbers = torch.stack([sums for *_, sums in found]).tolist()  # one wait for all of them
        return [
            Answer(rows, names, sums, means_of(names, own))
            for (rows, names, sums), own in zip(found, numbers, strict=True)
        ]

    def _by_units(self, lifted: Lifted, ask: Ask) -> Answer:
        """A refresh in Python around its one costly function, compiled."""
        fixed = [*self._params, *pytree.tree_leaves(ask.x)]

        def unit(rows: dict[str, Tensor]) -> Any:
            return lifted.unflatten(lifted.run(*fixed, *rows.values()))

        with torch.no_grad():
            refresh: Any = self.objective.refresh  # of those that have a unit
            rows, stats = refresh(None, ask.x, ask.state, unit=unit, noise=keyed(*ask.key))
            return Answer.of(rows, sums_of(None, ask.weight, stats))

    def _run(self, code: Flat, ask: Ask, *tensors: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            if self._kept[ask.refresh]:  # draws left in the graph come from torch's generator
                with seeded(*ask.key):
                    return code(*tensors)
            return code(*tensors)
