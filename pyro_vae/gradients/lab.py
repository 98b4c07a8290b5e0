"""Gradients of one objective, drawn over and over at parameters and a batch that stay."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro.infer.elbo import ELBO
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import flop_registry

from pyro_vae.densities.look import Look
from pyro_vae.densities.traces import DataScale
from pyro_vae.engine.choosing import gradient_source
from pyro_vae.engine.learner import blame
from pyro_vae.gradients.groups import Groups
from pyro_vae.graphs.compiling import entries_of
from pyro_vae.noise import NoiseMode, Stream, keyed, seeded
from pyro_vae.objectives.base import EMPTY, Objective, State
from pyro_vae.program.calling import Parameters, trainable
from pyro_vae.program.rows import Rows, num_rows
from pyro_vae.torch_internals import TorchDispatchMode

logger = logging.getLogger("pyro_vae")

BLOCKS = 25
ROUNDS = 7  # of timing
MOST_ENTRIES = 1 << 22  # of all intermediate tensors, where draws are taken as one batch


@dataclass(frozen=True)
class Draws:
    """What is kept of the gradients of one objective, by group.

    Attributes:
        blocks: (BLOCKS, parameters): means of equal blocks of draws.
        first: (parameters,): the first draw; deviations from it lose no digits to a large mean.
        squares: (BLOCKS,): squared deviations of a block's draws from it, summed.
        distances: (draws of all blocks but the first,): squared distance of a draw from the mean of
            the blocks before its own, whose tail says whether a variance can be measured.
        size: draws in a block.
        precision: relative, of a gradient.
    """

    blocks: dict[str, Tensor]
    first: dict[str, Tensor]
    squares: dict[str, Tensor]
    distances: dict[str, Tensor]
    size: int
    precision: float


class _Products(TorchDispatchMode):
    """Counts what products cost (torch's own counter also follows modules, by hooks that not every
    program bears)."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += int(formula(*args, **(kwargs or {}), out_val=result))
        return result


class Lab:
    """One objective at work on a program and a batch that stay as they are."""

    _alone = False  # whether draws cannot be taken together

    def __init__(
        self, program: nn.Module, x: Rows, objective: Objective | ELBO, seed: int, warmup: int
    ) -> None:
        self.program, self.x, self.seed = program, x, seed
        self.params: Parameters = trainable(program)
        own = isinstance(objective, Objective)
        self.state: State = EMPTY
        if own:
            key = Stream.LABORATORY_INIT.key(seed)
            with NoiseMode(keyed(*key)), seeded(*key):
                self.state = objective.init(program, x)  # type: ignore[union-attr]
        like = next(iter(self.params.values()))
        self.weight = torch.ones(num_rows(x), dtype=like.dtype, device=like.device)
        self.source = gradient_source(program, objective, x, self.state)
        with DataScale() as scale:
            Look.at(program, x, rows=None)
        self.count = num_rows(x) * scale.value
        if own and self.state.shared:
            for i in range(warmup):
                _, sums = self._step(Stream.LABORATORY_WARMUP, i)
                means = {name: v / sums["weight"] for name, v in sums.items() if name != "weight"}
                shared = objective.advance(self.state.shared, means)  # type: ignore[union-attr]
                self.state = self.state._replace(shared=shared)

    def _step(self, stream: Stream, number: int) -> tuple[Parameters, dict[str, Tensor]]:
        kept = {name: p.grad for name, p in self.params.items()}  # Pyro's own ELBOs write there
        try:
            key = stream.key(self.seed, number)
            return self.source.grads(self.params, self.x, self.weight, self.state, key)
        finally:
            for name, parameter in self.params.items():
                parameter.grad = kept[name]

    def _batched(self, start: int, count: int) -> Parameters:
        """Gradients of so many draws, (draws, ...), at the noise that each has by itself."""
        if count > 1:
            lifted = self.source.graph.grads  # type: ignore[attr-defined]
            keys = [Stream.LABORATORY.key(self.seed, start + i) for i in range(count)]
            drawn = [lifted.draw(key) for key in keys]
            noise = [torch.stack(each) for each in zip(*drawn, strict=True)]
            args = pytree.tree_leaves((self.params, self.x, self.weight, *self.state))
            run = torch.vmap(lambda *noise: lifted.flat(*args, *noise))
            try:
                with torch.no_grad():
                    return lifted.unflatten(run(*noise))[0]
            except RuntimeError as error:  # an operation that has no rule for batches
                logger.info("draws are taken one by one: %s", str(error).splitlines()[0])
                self._alone = True
                singles = [self._batched(start + i, 1) for i in range(count)]
                return {n: torch.cat([one[n] for one in singles]) for n in singles[0]}
        found, _ = self._step(Stream.LABORATORY, start)
        return {name: g.detach()[None] for name, g in found.items()}

    def _at_once(self, size: int) -> int:
        """How many draws of a block to take as one batch: small graphs are mostly overhead."""
        graph = getattr(self.source, "graph", None)
        if self._alone or graph is None or graph.grads.kept or not graph.grads.noise:
            return 1
        return max(1, min(size, MOST_ENTRIES // entries_of(graph.grads)))

    def draw(self, num_draws: int, parts: Groups, tell: Callable[[], None]) -> Draws:
        """So many gradients, a block at a time."""
        size = num_draws // BLOCKS
        first: dict[str, Tensor] = {}
        sums: dict[str, list[Tensor]] = {group: [] for group in parts}
        squares: dict[str, list[Tensor]] = {group: [] for group in parts}
        distances: dict[str, list[Tensor]] = {group: [] for group in parts}
        for block in range(BLOCKS):
            before = {group: sum(each) / max(block * size, 1) for group, each in sums.items()}
            most = self._at_once(size)
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
                    if block:
                        distances[group].append((deviation - before[group]).square().sum(1))
            tell()
        blocks = {group: torch.stack(each) / size + first[group] for group, each in sums.items()}
        spread = {group: torch.stack(each) for group, each in squares.items()}
        tails = {group: torch.cat(each) for group, each in distances.items()}
        return Draws(blocks, first, spread, tails, size, torch.finfo(self.weight.dtype).eps)

    def _blame(self, start: int, deviation: Tensor) -> None:
        """Raises ValueError for the first of these draws that is not finite."""
        draw = start + int((~deviation.isfinite()).any(1).nonzero()[0])
        found, _ = self._step(Stream.LABORATORY, draw)
        where, _ = blame(self.program, self.x, found, Stream.LABORATORY.key(self.seed, draw))
        raise ValueError(f"draw {draw} of the gradient is not finite: {where}")

    def seconds(self, i: int) -> float:
        """How long one gradient takes."""
        started = time.perf_counter()
        _, sums = self._step(Stream.LABORATORY_TIMING, i)
        float(sums["weight"])  # waits for a device
        return time.perf_counter() - started

    def multiplications(self) -> int:
        """How many one gradient takes in matrix products."""
        with _Products() as counter:
            self._step(Stream.LABORATORY_TIMING, 0)
        return counter.flops // 2  # a multiplication and an addition


def costs(labs: dict[str, Lab]) -> dict[str, dict[str, float]]:
    """Of one gradient; objectives take turns, so that a noisy machine is noisy for all of them."""
    seconds = [{name: lab.seconds(i) for name, lab in labs.items()} for i in range(ROUNDS)]
    return {
        name: {
            "seconds": statistics.median(each[name] for each in seconds),
            "multiplications": float(lab.multiplications()),
        }
        for name, lab in labs.items()
    }
