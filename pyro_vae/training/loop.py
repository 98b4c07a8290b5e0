"""The loop inside ``fit``: minibatch, step, records."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from pyro_vae.engine.learner import Answer, Ask, Learner, NotFinite
from pyro_vae.evidence.bound import elbo_and_error
from pyro_vae.noise import Key, Stream
from pyro_vae.objectives.base import Objective, State
from pyro_vae.program.rows import Rows
from pyro_vae.program.stored import Stored
from pyro_vae.progress import Record
from pyro_vae.runs.history import History
from pyro_vae.runs.run import restore
from pyro_vae.training.advice import Collapse
from pyro_vae.training.batches import Batches
from pyro_vae.turns import in_turn


@dataclass
class Progress:
    """How far a run is.

    With the parameters, the optimizer, the objective's state and the history it is all that a
    resumed run needs, because the noise and the minibatches of a step follow from (seed, step).
    """

    steps: int = 0  # updates taken
    samples: int = 0  # rows x updates
    batches: int = 0  # drawn; Monte Carlo EM stays on each for some updates
    seconds: float = 0.0
    best: Tensor | None = None  # held-out bounds per datum that early stopping wants surpassed
    waited: int = 0  # evaluations since then
    called_off: int = 0  # the budget that a callback ended
    best_bound: float | None = None  # the highest mean of all evaluations, by however little
    best_step: int | None = None  # and when that was


@dataclass
class Loop:
    """What ``fit`` sets up, and what changes from step to step: state, history and progress.

    Attributes:
        kept: parameters, buffers and state at the best evaluation, where these are what the run
            is to end with (``keep_best``).  Training itself never reads them.
    """

    learner: Learner
    batches: Batches
    state: State
    seed: int = 0
    scheduler: Any = None
    scheduler_is_told: bool = False  # the held-out bound, at each evaluation; else called each step
    validation: Rows | Stored | None = None
    evaluate_every: int = 1
    record_every: int = 1
    patience: int | None = None
    keep_best: bool = False
    kept: dict[str, Any] | None = None
    booked: bool = True  # all that was answered; not so after an error in the midst of that
    listeners: Sequence[Callable[[Record], Any]] = ()
    told: int = 0  # records that they were told
    after_step: Callable[[Loop], Any] = lambda loop: None  # saves, where a folder was named
    first: Callable[[Callable[[], Any]], Any] = lambda function: function()  # run by rank 0 alone
    pause_every: int = 0  # updates after which `after_step` must see the loop, whatever else
    history: History = field(default_factory=History)
    collapse: Collapse = field(default_factory=Collapse)
    progress: Progress = field(default_factory=Progress)

    def totals(self) -> dict[str, Any]:
        """How far the run is, for its manifest."""
        done, batches, objective = self.progress, self.batches, self.learner.objective
        epochs, rest = divmod(done.batches, batches.per_epoch)
        rows = epochs * batches.num_data + min(rest * batches.batch_size, batches.num_data)
        return {
            "steps": done.steps,
            "samples": done.samples,
            "leapfrogs": objective.leapfrogs(rows) if isinstance(objective, Objective) else 0,
            "seconds": done.seconds,
            "keep": "last" if self.kept is None else "best",
            "kept_step": done.steps if self.kept is None else done.best_step,
            "best_step": done.best_step,
            "best_validation_bound": done.best_bound,
        }

    def ended(self, num_steps: int) -> str:
        """Why there is no further step under this budget; empty where there is one."""
        done = self.progress
        if done.called_off >= num_steps:
            return "callback"
        if self.patience is not None and done.waited >= self.patience:
            return f"early stopping: no rise in {done.waited} evaluations"
        return "budget" if done.steps >= num_steps else ""

    def turns(self, num_steps: int) -> Generator[list[Ask], Any, str]:
        """The loop as a conversation: it asks for a refresh or some updates, and books the answers.

        So one batched program can answer many loops at once.  ``send`` it the answers, and how
        many updates it may ask for at a time.
        """
        done = self.progress
        started = time.perf_counter() - done.seconds
        refresh_every = getattr(self.learner.objective, "refresh_every", 0)
        most = 1
        while not (reason := self.ended(num_steps)):
            fresh = not refresh_every or done.steps % refresh_every == 0
            asks: list[Ask] = []
            indices: list[Tensor] = []  # of the rows that count
            undo = None
            try:
                if fresh and refresh_every:
                    index, x, weight, count = self.batches(done.batches)
                    undo = self._before_refresh(index[:count])
                    state = rows_of(self.state, index)
                    (answer,), most = yield [Ask(True, x, weight, state, self._key(Stream.REFRESH))]
                    self._keep(index[:count], answer.rows)
                    self._book(answer, count)
                for ahead in range(self._ahead(num_steps, most)):
                    index, x, weight, count = self.batches(done.batches + fresh + ahead - 1)
                    key = self._key(Stream.TRAIN, ahead)
                    asks.append(Ask(False, x, weight, rows_of(self.state, index), key))
                    indices.append(index[:count])
                answers, most = yield asks
            except BaseException as error:  # what was done before it is booked, the rest undone
                if isinstance(error, NotFinite):
                    made = error.answers_to(self.learner)
                    self._take(made, indices, fresh)
                    done.seconds = time.perf_counter() - started
                    if error.learner is self.learner:
                        error.tell_row(indices[len(made) :])
                if undo is not None:
                    undo()
                raise
            self._take(answers, indices, fresh)
            done.seconds = time.perf_counter() - started
            last = done.steps == num_steps
            evaluate = self.validation is not None and (
                last or done.steps % self.evaluate_every == 0
            )
            if last or evaluate or done.steps % self.record_every == 0:
                record = self.record(evaluate)
                if self.first(partial(self._told, record)):
                    done.called_off = num_steps
            self.after_step(self)
        return reason

    def _key(self, stream: Stream, ahead: int = 0) -> Key:
        return stream.key(self.seed, self.progress.steps + ahead)

    def _ahead(self, num_steps: int, most: int) -> int:
        """How many updates may be asked for before anyone looks at the program or its state."""
        refreshes = getattr(self.learner.objective, "refresh_every", 0) > 0
        at_each = self.scheduler is not None and not self.scheduler_is_told
        if refreshes or self.state.rows or self.state.shared or at_each:
            return 1
        pauses = [self.record_every, self.pause_every]
        if self.validation is not None:
            pauses.append(self.evaluate_every)
        until = [every - self.progress.steps % every for every in pauses if every]
        return min(most, num_steps - self.progress.steps, *until)

    def _take(self, answers: Sequence[Answer], indices: Sequence[Tensor], fresh: bool) -> None:
        """Book updates that were made."""
        done, self.booked = self.progress, False
        for answer, index in zip(answers, indices, strict=False):  # one may have failed
            self._book(answer, len(index))
            done.steps, done.samples = done.steps + 1, done.samples + len(index)
            done.batches += fresh
            if self.scheduler is not None and not self.scheduler_is_told:
                self.scheduler.step()
        self.booked = True

    def _before_refresh(self, index: Tensor) -> Callable[[], None]:
        """What brings state and history back to where they are now: a refresh is half a step."""
        shared, rows = self.state.shared, rows_of(self.state, index).rows
        sums, counts = dict(self.history.memory()["sums"]), dict(self.history.memory()["counts"])

        def undo() -> None:
            self._keep(index, rows)
            self.state = self.state._replace(shared=shared)
            self.history.remember({**self.history.memory(), "sums": sums, "counts": counts})

        return undo

    def _keep(self, index: Tensor, rows: dict[str, Tensor]) -> None:
        for name, value in rows.items():
            kept = self.state.rows[name]
            kept[index.to(kept.device)] = value[: len(index)]

    def _book(self, answer: Answer, count: int) -> None:
        """Means go to the history, and the objective's shared state moves on them."""
        objective = self.learner.objective
        if isinstance(objective, Objective) and self.state.shared:
            tensors = dict(zip(answer.names, answer.sums.unbind(), strict=True))
            weight = tensors.pop("weight")
            means = {name: value / weight for name, value in tensors.items()}
            self.state = self.state._replace(shared=objective.advance(self.state.shared, means))
        self.history.add(answer.means, count)
        self.collapse.watch(answer.means, count, self.progress.steps + 1, self.learner.name)

    def record(self, evaluate: bool) -> Record:
        """Close a window of the history, with a held-out evaluation where one is due."""
        done, held_out = self.progress, dict[str, float]()
        if evaluate and getattr(self.learner.objective, "has_bound", True):
            program, seed = self.learner.program, self.seed
            values, error = self.first(lambda: elbo_and_error(program, self.validation, seed=seed))
            bound = float(values.mean())
            held_out = {"validation_bound": bound, "validation_bound_standard_error": error}
            if done.best is None or _risen(values, done.best):
                done.best, done.waited = values, 0
            else:
                done.waited += 1
            if done.best_bound is None or bound > done.best_bound:
                done.best_bound, done.best_step = bound, done.steps
                self.kept = in_turn(self._snapshot) if self.keep_best else None
            # Not at the end of a budget in between: a larger one would go on with another rate.
            if self.scheduler_is_told and done.steps % self.evaluate_every == 0:
                # Schedulers take a loss, unless told that more is better.
                rising = getattr(self.scheduler, "mode", "min") == "max"
                self.scheduler.step(bound if rising else -bound)
        record = self.history.record(
            step=done.steps, samples=done.samples, seconds=done.seconds, **held_out
        )
        return record._replace(program=self.learner.program, best_step=done.best_step)

    def _told(self, record: Record) -> bool:
        """Whether a listener wants the run to end; all of them are told."""
        self.told += 1
        return True in [listen(record) for listen in self.listeners]

    def _snapshot(self) -> dict[str, Any]:
        """Copies of all that a run is loaded from, as they are now."""
        program = self.learner.program

        def copies(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
            return {name: tensor.detach().clone() for name, tensor in tensors}

        return {
            "parameters": copies(program.named_parameters()),
            "buffers": copies(program.named_buffers()),
            "state": {
                part: copies(values.items()) for part, values in self.state._asdict().items()
            },
        }

    def finish(self) -> None:
        """Put the weights that are kept into the program, and the state that goes with them."""
        if self.kept is not None:
            in_turn(restore, self.learner.program, self.kept)
            self.state = State(**self.kept["state"])


def rows_of(state: State, index: Tensor) -> State:
    """The state of these rows alone."""
    rows = {name: value[index.to(value.device)] for name, value in state.rows.items()}
    return State(rows, state.shared)


def _risen(new: Tensor, best: Tensor) -> bool:
    """Whether the paired difference exceeds its own standard error."""
    if not math.isfinite(float(best.mean())):  # there is no error of a difference to -inf
        return float(new.mean()) > float(best.mean())
    difference = new - best
    error = float(difference.std() / math.sqrt(len(new))) if len(new) > 1 else 0.0
    return float(difference.mean()) > error
