r"""Steps whose update is a part of their graph, for one learner or for replicas in lockstep.

Several updates are prepared and run in a row, from a copy of what was there before the first.
Where one of them made what is no number, everything is put back and those before it are made again,
from the same tensors.  Python is left with drawing noise, choosing rows and reading a handful of
numbers, and does each for several updates in a row: between two large matrix products, which sweep
the caches, it takes five times as long.

Of replicas the programs and optimizers hold views of what is stacked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_vae.engine.capture import Graph
from pyro_vae.engine.functions import Sums, sums_of
from pyro_vae.engine.learner import Answer, Ask, Learner, NotFinite, means_of, stack
from pyro_vae.engine.replaying import replayed
from pyro_vae.engine.steps import Step
from pyro_vae.engine.updates import Rules, bind, numbers_of, rebind, unbind
from pyro_vae.graphs.compiling import Flat
from pyro_vae.graphs.lifted import Lifted
from pyro_vae.noise import Noise, keyed, seeded
from pyro_vae.objectives.base import Objective, State

Refreshed = tuple[dict[str, Tensor], Sums]

AT_ONCE = 32  # updates that are prepared together, at most; and what their rows take
BYTES_AT_ONCE = 16 << 20
SECONDS_AT_ONCE = 0.1


class FusedStep(Step):
    """Gradients and update as one graph; see `engine/fusing.py`."""

    reason = ""

    def __init__(self, graph, objective, rule, names, code, refresh, unit, stacked, machine, forms):
        self.graph: Graph = graph
        self.objective: Objective = objective
        self.rule: Rules = rule
        self.names: tuple[str, ...] = names
        self.stacked: bool = stacked
        self.engine = "compiled" if machine else "eager"
        self._code: Flat = code
        self._machine_code: Flat = code
        self._refresh: Any = refresh
        self._kept = tuple(bool(g.kept) if g else False for g in (graph.grads, graph.refresh))
        self._unit: Lifted | None = unit
        self._written_forms, self._given_forms = forms

    def bind(self, learners: Sequence[Learner]) -> None:
        """Work in place on the parameters and the optimizers' states of these learners.

        Replicas' parameters and states become views of stacked tensors.
        """
        self._learners = learners
        for learner in learners:
            for p, form in zip(learner.parameters.values(), self._written_forms, strict=False):
                stride = form[1][1:] if self.stacked else form[1]
                if p.stride() != stride and p.dim() == len(stride):
                    p.data = torch.empty_strided(p.shape, stride).to(p).copy_(p.data)
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
        self._written = [*self._params, *self._memory]
        self._code, self._recorded = self._machine_code, False
        _require("parameters and optimizer's state", self._written, self._written_forms)
        self._before = [torch.empty_like(t) for t in self._written]
        self._places = self._now_at()

    def displaced(self) -> bool:
        return self._now_at() != self._places

    def _now_at(self) -> list[tuple[int, Any]]:
        """Where the learners' parameters and the optimizers' states lie."""
        found: list[Any] = []
        for learner in self._learners:
            for p in learner.parameters.values():
                found += [p, *map(learner.optimizer.state[p].get, ("step", *self.rule.names))]
        return [(t.data_ptr(), t.stride()) if isinstance(t, Tensor) else (0, t) for t in found]

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
        given = [self._given(self.graph.grads, each) for each in zip(*asks, strict=True)]
        for each in given:
            _require("a batch with its state and noise", each, self._given_forms)
        prepared = [
            [*self._params, *each, now, *self._memory]
            for each, now in zip(given, numbers, strict=True)
        ]
        torch._foreach_copy_(self._before, self._written)
        self._whole(False)
        if not self._recorded:
            self._record(prepared[0])
        answers, error = self._answered(asks[0], prepared)
        for number, at in enumerate(answers):
            if not all(answer.finite for answer in at):  # what comes after it is of no use
                self._again(asks[0], prepared[:number])
            for learner, its, answer in zip(self._learners, asks, at, strict=True):
                try:
                    learner.require_finite(answer.means, its[number])
                except NotFinite:
                    self._again(asks[0], prepared[:number])
                    before = [[at[r] for at in answers[:number]] for r in range(len(at))]
                    self.made = [*zip(self._learners, before, strict=True)]
                    raise
        if error is not None:
            self._again(asks[0], [])
            raise error
        self._whole(True)
        return [[*own] for own in zip(*answers, strict=True)]

    def _record(self, tensors: Sequence[Tensor]) -> None:
        """On a GPU, where nothing is drawn inside: at the addresses of these parameters."""
        self._recorded = True
        if tensors[0].is_cuda and not self._kept[False] and self.engine == "compiled":
            self._code = replayed(self._machine_code, tensors, self._written)
            torch._foreach_copy_(self._written, self._before)

    def _again(self, asks: Sequence[Ask], prepared: Sequence[Sequence[Tensor]]) -> None:
        """All that is written as it was, and after these updates; so often as it is called."""
        torch._foreach_copy_(self._written, self._before)
        for ask, tensors in zip(asks, prepared, strict=False):
            self._run(self._code, ask, *tensors)
        self._whole(True)

    def _whole(self, whole: bool) -> None:
        for learner in self._learners:
            learner.whole = whole

    def _answered(
        self, asks: Sequence[Ask], prepared: Sequence[Sequence[Tensor]]
    ) -> tuple[list[tuple[Answer, ...]], BaseException | None]:
        """Answers to all learners, update by update, as far as these came, and what stopped them.

        What stops one may be what an update that was no number has led to.
        """
        sums: list[Tensor] = []
        error: BaseException | None = None
        try:
            for ask, tensors in zip(asks, prepared, strict=True):
                sums.append(self._run(self._code, ask, *tensors)[0])
        except BaseException as raised:
            if not sums:
                return [], raised
            error = raised
        stacked = torch.stack(sums)
        stacked = stacked if self.stacked else stacked[:, None]
        numbers = stacked.tolist()  # the one wait for a device
        return [
            tuple(
                Answer(None, self.names, s, means_of(self.names, n))
                for s, n in zip(at.unbind(), own, strict=True)
            )
            for at, own in zip(stacked.unbind(), numbers, strict=True)
        ], error

    def most_at_once(self, asks: Sequence[Ask], seconds: float) -> int:
        """So many that neither memory nor a user who wants to stop them would notice.

        The number changes no result, so a clock may choose it.
        """
        size = sum(t.nbytes for t in leaves_of(asks[0])) * len(self._learners)
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
        each = [[*leaves_of(ask), *lifted.draw(ask.key)] for ask in asks]
        return [torch.stack(ts) for ts in zip(*each, strict=True)] if self.stacked else each[0]

    def _refreshed(self, asks: Sequence[Ask]) -> list[Answer]:
        found = self._as_a_whole(asks) if self._unit is None else self._by_units(self._unit, asks)
        stacked = [(rows, *stack(sums)) for rows, sums in found]
        numbers = torch.stack([sums for *_, sums in stacked]).tolist()  # one wait for all of them
        return [
            Answer(rows, names, sums, means_of(names, own))
            for (rows, names, sums), own in zip(stacked, numbers, strict=True)
        ]

    def _as_a_whole(self, asks: Sequence[Ask]) -> list[Refreshed]:
        """New rows and sums of each learner."""
        lifted: Any = self.graph.refresh
        results = self._run(self._refresh, asks[0], *self._params, *self._given(lifted, asks))
        each = zip(*[r.unbind() for r in results], strict=True) if self.stacked else [results]
        return [lifted.unflatten(own) for own in each]

    def _by_units(self, lifted: Lifted, asks: Sequence[Ask]) -> list[Refreshed]:
        """The same in Python around its one costly function, compiled.

        Rows know nothing of one another, so those of all replicas are moved as if they were one's;
        what its rows share comes once for each row.
        """
        count, size = len(asks), len(asks[0].weight)
        states = [ask.state for ask in asks]
        flat = partial(torch.flatten, end_dim=1)
        leaves = zip(*[pytree.tree_leaves(ask.x) for ask in asks], strict=True)
        fixed = [*self._params, *[torch.stack(ts) if self.stacked else ts[0] for ts in leaves]]

        def unit(rows: dict[str, Tensor]) -> Any:
            own = [t.unflatten(0, (count, size)) if self.stacked else t for t in rows.values()]
            results = lifted.run(*fixed, *own)
            return lifted.unflatten([flat(r) for r in results] if self.stacked else results)

        def noise(index: int, wanted: Noise) -> Tensor:
            own = wanted._replace(shape=(size, *wanted.shape[1:]))
            return torch.cat([keyed(*ask.key)(index, own) for ask in asks])

        rows = {name: torch.cat([s.rows[name] for s in states]) for name in states[0].rows}
        shared = dict(states[0].shared)
        if self.stacked:
            for name in shared:
                shared[name] = torch.stack([s.shared[name] for s in states]).repeat_interleave(size)
        with torch.no_grad():
            refresh: Any = self.objective.refresh  # of those that have a unit
            new, stats = refresh(None, None, State(rows, shared), unit=unit, noise=noise)
            parts = [{n: v.split(size) for n, v in values.items()} for values in (new, stats)]
            found = []
            for r, ask in enumerate(asks):
                own_rows, own_stats = ({n: v[r] for n, v in part.items()} for part in parts)
                found.append((own_rows, sums_of(None, ask.weight, own_stats)))
            return found

    def _run(self, code: Flat, ask: Ask, *tensors: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            if self._kept[ask.refresh]:  # draws left in the graph come from torch's generator
                with seeded(*ask.key):
                    return code(*tensors)
            return code(*tensors)


def leaves_of(ask: Ask) -> list[Tensor]:
    """The tensors of a batch and of its state, in a graph's order."""
    if isinstance(ask.x, Tensor) and not ask.state.rows and not ask.state.shared:
        return [ask.x, ask.weight]  # mostly so; going through nests takes a tenth of a small step
    return pytree.tree_leaves(ask[1:4])


def form_of(tensor: Tensor) -> tuple:
    """What machine code takes for granted of a tensor."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _require(what: str, tensors: Sequence[Tensor], expected: Sequence[tuple]) -> None:
    """Machine code reads and writes where tensors of these forms would lie, and looks at none."""
    if (found := [form_of(t) for t in tensors]) != expected:
        got, wanted = next(pair for pair in zip(found, expected, strict=True) if pair[0] != pair[1])
        raise ValueError(
            f"{what} has a tensor of shape, strides, type and device {got}, expected {wanted}, as "
            'at the first step: let all be of one form, or train with engine="pyro"'
        )
