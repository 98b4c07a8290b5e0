"""The loop inside ``fit``: minibatch, gradients, checks, update, records."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_vae.engine.gradients import Sums
from pyro_vae.engine.learner import Answer, Ask, blame, stack
from pyro_vae.evidence.bound import elbo
from pyro_vae.objectives.base import Objective, State
from pyro_vae.program.calling import Parameters
from pyro_vae.program.rows import Rows
from pyro_vae.progress import Record
from pyro_vae.runs.history import History
from pyro_vae.training.batches import Batches


@dataclass
class Loop:
    """What ``fit`` sets up, and what changes from step to step.

    Everything from ``history`` on is the loop's memory: with the parameters, the optimizer and the
    objective's state it is all that a resumed run needs, because the noise and the minibatches of
    a step follow from (seed, step).
    """

    program: nn.Module
    parameters: Parameters
    objective: Objective | ELBO
    batches: Batches
    state: State
    optimizer: torch.optim.Optimizer
    seed: int = 0
    name: str = ""  # which of several it is, for messages
    clip: float | None = None
    scheduler: Any = None
    validation: Rows | None = None
    evaluate_every: int = 1
    record_every: int = 1
    patience: int | None = None
    listeners: Sequence[Callable[[Record], Any]] = ()
    after_step: Callable[[Loop], Any] = lambda loop: None  # saves, where a folder was named
    pause_every: int = 0  # updates after which `after_step` must see the loop, whatever else
    history: History = field(default_factory=History)
    steps_done: int = 0
    samples_done: int = 0
    batches_drawn: int = 0
    seconds: float = 0.0
    best: Tensor | None = None  # held-out bounds per datum of the best evaluation
    waited: int = 0  # evaluations since then
    called_off: int = 0  # the budget that a callback ended

    def progress(self) -> dict[str, Any]:
        """How far the run is, for its manifest."""
        counts = isinstance(self.objective, Objective)
        batches = self.batches
        epochs, rest = divmod(self.batches_drawn, batches.per_epoch)
        rows = epochs * batches.num_data + min(rest * batches.batch_size, batches.num_data)
        return {
            "steps": self.steps_done,
            "samples": self.samples_done,
            "leapfrogs": self.objective.leapfrogs(rows) if counts else 0,  # type: ignore[union-attr]
            "seconds": self.seconds,
        }

    def ended(self, num_steps: int) -> str:
        """Why there is no further step under this budget; empty where there is one."""
        if self.called_off >= num_steps:
            return "callback"
        if self.patience is not None and self.waited >= self.patience:
            return f"early stopping: no rise in {self.waited} evaluations"
        return "budget" if self.steps_done >= num_steps else ""

    def turns(self, num_steps: int) -> Generator[list[Ask], Any, str]:
        """The loop as a conversation: it asks for a refresh or some updates, and books the answers.

        So one batched program can answer many loops at once.  ``send`` it the answers, and how
        many updates it may ask for at a time.
        """
        started = time.perf_counter() - self.seconds
        refresh_every = getattr(self.objective, "refresh_every", 0)
        most = 1
        while not (reason := self.ended(num_steps)):
            fresh = not refresh_every or self.steps_done % refresh_every == 0
            if fresh and refresh_every:
                index, x, weight, count = self.batches(self.batches_drawn)
                ask = Ask(True, x, weight, rows_of(self.state, index), (*self._key(0), 1))
                ((rows, *sums),), most = yield [ask]
                self._keep(index[:count], rows)
                self.history.add(self._advance(*sums), count)
            asks, counts = [], []
            for ahead in range(self._ahead(num_steps, most)):
                drawn = self.batches_drawn + fresh + ahead
                index, x, weight, count = self.batches(drawn - 1)
                asks.append(Ask(False, x, weight, rows_of(self.state, index), self._key(ahead)))
                counts.append(count)
            answers, most = yield asks
            for ask, (_, *sums), count in zip(asks, answers, counts, strict=True):
                self._require_finite(means_of(*sums), ask.x, {}, ask.key)
                self.history.add(self._advance(*sums), count)
                if self.scheduler is not None:
                    self.scheduler.step()
                self.steps_done, self.samples_done = self.steps_done + 1, self.samples_done + count
                self.batches_drawn += fresh
            self.seconds = time.perf_counter() - started
            last = self.steps_done == num_steps
            evaluate = self.validation is not None and (
                last or self.steps_done % self.evaluate_every == 0
            )
            if last or evaluate or self.steps_done % self.record_every == 0:
                record = self.record(evaluate)
                told = [listen(record) for listen in self.listeners]  # all of them are
                if True in told:
                    self.called_off = num_steps
            self.after_step(self)
        return reason

    def _key(self, ahead: int) -> tuple[int, int, int]:
        return (self.seed, 0, self.steps_done + ahead)

    def _ahead(self, num_steps: int, most: int) -> int:
        """How many updates may be asked for before anyone looks at the program or its state."""
        refreshes = getattr(self.objective, "refresh_every", 0) > 0
        if refreshes or self.state.rows or self.state.shared or self.scheduler is not None:
            return 1
        pauses = [self.record_every, self.pause_every]
        if self.validation is not None:
            pauses.append(self.evaluate_every)
        until = [every - self.steps_done % every for every in pauses if every]
        return min(most, num_steps - self.steps_done, *until)

    def apply(self, grads: Parameters, sums: Sums, ask: Ask) -> Answer:
        """One optimizer update with these gradients.

        Raises:
            ValueError: before the update, where the loss or a gradient is not finite.
        """
        names, stacked = stack(sums)
        means = means_of(names, stacked)
        self._require_finite(means, ask.x, grads, ask.key)
        norm = means["grad_norm"]
        scale = 1.0 if self.clip is None or norm <= self.clip else self.clip / norm
        for name, parameter in self.parameters.items():
            parameter.grad = grads[name] if scale == 1.0 else grads[name] * scale
        self.optimizer.step()
        return None, names, stacked

    def _keep(self, index: Tensor, rows: dict[str, Tensor]) -> None:
        for name, value in rows.items():
            kept = self.state.rows[name]
            kept[index.to(kept.device)] = value[: len(index)]

    def _require_finite(
        self, means: dict[str, float], x: Rows, grads: Parameters, key: tuple
    ) -> None:
        if math.isfinite(means["loss"]) and math.isfinite(means["grad_norm"]):
            return
        raise ValueError(
            f"{self.name}step {key[2] + 1}: the loss is {means['loss']:.4g} and the gradient's "
            f"norm {means['grad_norm']:.4g}; {blame(self.program, x, grads, key)}. The parameters "
            "are those before this step: lower lr, set clip, or bound the scale that collapses"
        )

    def record(self, evaluate: bool) -> Record:
        """Close a window of the history, with a held-out evaluation where one is due."""
        held_out: dict[str, float] = {}
        if evaluate and getattr(self.objective, "has_bound", True):
            values = elbo(self.program, self.validation, seed=self.seed)
            error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
            held_out = {
                "validation_bound": float(values.mean()),
                "validation_bound_standard_error": error,
            }
            if self.best is None or _risen(values, self.best):
                self.best, self.waited = values, 0
            else:
                self.waited += 1
        record = self.history.record(
            step=self.steps_done, samples=self.samples_done, seconds=self.seconds, **held_out
        )
        return record._replace(program=self.program)

    def _advance(self, names: tuple[str, ...], stacked: Tensor) -> dict[str, float]:
        """Batch means as numbers; the objective's shared state moves on them."""
        if isinstance(self.objective, Objective) and self.state.shared:
            tensors = dict(zip(names, stacked.unbind(), strict=True))
            weight = tensors.pop("weight")
            means = {name: value / weight for name, value in tensors.items()}
            shared = self.objective.advance(self.state.shared, means)
            self.state = self.state._replace(shared=shared)
        return means_of(names, stacked)


def means_of(names: tuple[str, ...], stacked: Tensor) -> dict[str, float]:
    """Batch means as numbers, from sums."""
    numbers = dict(zip(names, stacked.tolist(), strict=True))  # the one wait for a device
    rows = numbers.pop("weight")
    return {name: value / rows for name, value in numbers.items()}


def rows_of(state: State, index: Tensor) -> State:
    """The state of these rows alone."""
    rows = {name: value[index.to(value.device)] for name, value in state.rows.items()}
    return State(rows, state.shared)


def _risen(new: Tensor, best: Tensor) -> bool:
    """Whether the paired difference exceeds its own standard error."""
    difference = new - best
    error = float(difference.std() / math.sqrt(len(new))) if len(new) > 1 else 0.0
    return float(difference.mean()) > error
