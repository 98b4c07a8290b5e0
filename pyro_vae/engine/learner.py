"""What learns: a program's parameters, the optimizer that moves them, and how it is talked to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyro
import torch
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_vae.densities.look import Look, looking
from pyro_vae.densities.traces import sites_of_both
from pyro_vae.engine.functions import Sums
from pyro_vae.noise import Key
from pyro_vae.objectives.base import Objective, State
from pyro_vae.program.calling import Parameters
from pyro_vae.program.rows import Rows


class Ask(NamedTuple):
    """What a training loop asks of a step: an update, or a refresh of these rows' state."""

    refresh: bool
    x: Rows
    weight: Tensor
    state: State
    key: Key  # of the noise; its last number is that of the step


class Answer(NamedTuple):
    """What it is answered.

    Attributes:
        rows: the new rows of a refresh; None after an update.
        names: of the sums.
        sums: statistics summed over the batch, one tensor where they were computed.
        means: the same over the batch's rows, as numbers.
    """

    rows: dict[str, Tensor] | None
    names: tuple[str, ...]
    sums: Tensor
    means: dict[str, float]

    @classmethod
    def of(cls, rows: dict[str, Tensor] | None, sums: Sums) -> Answer:
        """With its numbers, for which a device is waited for, once."""
        names, stacked = stack(sums)
        return cls(rows, names, stacked, means_of(names, stacked.tolist()))

    @property
    def finite(self) -> bool:
        """Whether an update has a loss, a gradient and new parameters that are numbers."""
        return finite(self.means)


class NotFinite(ValueError):
    """A loss, a gradient or a parameter that is no number; nothing was changed by its step.

    Attributes:
        learner: whose.
        made: answers to the updates that were made before it, of those that were asked for with
            it, by learner.
        row: of the batch, where one is at fault.
    """

    def __init__(self, message: str, learner: Learner, row: int | None = None) -> None:
        super().__init__(message)
        self.learner, self.row = learner, row
        self.made: Sequence[tuple[Learner, list[Answer]]] = ()

    def answers_to(self, learner: Learner) -> list[Answer]:
        """Those of ``made`` that are its own."""
        return next((answers for each, answers in self.made if each is learner), [])

    def tell_row(self, indices: Sequence[Tensor]) -> None:
        """Say which row of the data it is; ``indices`` begins with the rows of its batch."""
        if self.row is not None and indices and self.row < len(indices[0]):
            place, row = f"at row {self.row} of the batch", int(indices[0][self.row])
            self.args = (str(self).replace(place, f"{place}, row {row} of the data"),)


@dataclass
class Learner:
    """Parameters with the optimizer that moves them, under one objective.

    Steps work on learners and know no training loop; a loop has one.

    Attributes:
        parameters: of the program, those that are trained.
        clip: the largest norm of the whole gradient.
        name: which of several it is, for messages.
        whole: whether parameters and optimizer are those of one step; not so while they are
            being written, nor after an error in the midst of that.
    """

    program: nn.Module
    parameters: Parameters
    objective: Objective | ELBO
    optimizer: torch.optim.Optimizer
    clip: float | None = None
    name: str = ""
    whole: bool = True

    def update(self, grads: Parameters, sums: Sums, ask: Ask) -> Answer:
        """One optimizer update with these gradients, which ``ask`` asked for.

        Raises:
            ValueError: before the update, where the loss or a gradient is not finite.
        """
        answer = Answer.of(None, sums)
        self.require_finite(answer.means, ask, grads)
        norm = answer.means["grad_norm"]
        scale = 1.0 if self.clip is None or norm <= self.clip else self.clip / norm
        for name, parameter in self.parameters.items():
            parameter.grad = grads[name] if scale == 1.0 else grads[name] * scale
        self.whole = False
        self.optimizer.step()
        self.whole = True
        return answer

    def require_finite(
        self, means: dict[str, float], ask: Ask, grads: Parameters | None = None
    ) -> None:
        """Refuse an update that is not finite, and say what was not.

        The parameters are those before it.  A norm below 0 says that parameter number -norm - 1
        would not be.

        Raises:
            NotFinite: a ValueError naming the step, and the site and row, or the parameters.
        """
        if finite(means):
            return
        step = f"{self.name}step {ask.key[-1] + 1}"
        if (norm := means["grad_norm"]) < 0:
            name = list(self.parameters)[round(-norm) - 1]
            said = f"{self._burst(name)}. The parameters are those before this step"
            raise NotFinite(f"{step}: {said}", self)
        why, row = blame(self.program, ask.x, grads or {}, ask.key)
        raise NotFinite(
            f"{step}: the loss is {means['loss']:.4g} and the gradient's norm {norm:.4g}; {why}"
            f"{self._broken_before()}. The parameters are those before this step: lower lr, set "
            "clip, or bound the scale that collapses",
            self,
            row,
        )

    def explain(self, error: ValueError, ask: Ask) -> None:
        """Say step and site of what a distribution refused, whose message has neither.

        Raises:
            NotFinite: if that is what the error is.
        """
        if isinstance(error, NotFinite) or "to satisfy the constraint" not in str(error):
            return
        step = f"{self.name}step {ask.key[-1] + 1}"
        why, row = blame(self.program, ask.x, {}, ask.key)
        first = str(error).splitlines()[0]
        said = first if why == first else f"{first} {why}"
        raise NotFinite(
            f"{step}: {said}{self._broken_before()}. The parameters are those before this step",
            self,
            row,
        ) from error

    def _broken_before(self) -> str:
        """What the step before, or somebody between the two, has made of the parameters."""
        broken = [name for name, p in self.parameters.items() if not p.isfinite().all()]
        if not broken:
            return ""
        self.whole = False
        return f"; {self._burst(broken[0])} in the step before, if nothing else wrote it"

    def _burst(self, name: str) -> str:
        kind = type(self.optimizer).__name__
        return (
            f'"{name}" is made infinite or nan by the update of {kind} (lower lr, or raise eps '
            "where it divides by that)"
        )


def stack(sums: Sums) -> tuple[tuple[str, ...], Tensor]:
    """Names and one tensor, so that a device is waited for once."""
    like = sums["weight"].dtype
    return tuple(sums), torch.stack([value.to(like) for value in sums.values()])


def finite(means: dict[str, float]) -> bool:
    """Whether an update has a loss, a gradient and new parameters that are numbers."""
    return math.isfinite(means["loss"]) and 0 <= means["grad_norm"] < math.inf


def means_of(names: tuple[str, ...], sums: Sequence[float]) -> dict[str, float]:
    """Batch means, from sums."""
    numbers = dict(zip(names, sums, strict=True))
    rows = numbers.pop("weight")
    return {name: value / rows for name, value in numbers.items()}


def blame(program: nn.Module, x: Rows, grads: Parameters, key: tuple) -> tuple[str, int | None]:
    """What is not finite at this step: a site and its first row, or else parameters."""
    try:
        for role, name, site in Look.at(program, x, rows=None, key=key):
            with torch.no_grad():
                value = site.density()
            if not value.isfinite().all():
                rows = (~value.isfinite()).nonzero()
                row = int(rows[0, -1]) if rows.numel() else 0
                return (
                    f'the {role}\'s site "{name}" has log density '
                    f"{float(value.flatten()[(~value.isfinite()).flatten()][0])} "
                    f"at row {row} of the batch"
                ), row
    except ValueError as error:  # a distribution refused its parameters
        return str(error).splitlines()[0], None
    try:  # densities are finite: then what Pyro's validation, or a part's own, has against the rows
        with torch.no_grad(), looking(program, key), pyro.validation_enabled(True):
            sites_of_both(program, x, reparameterize=False)
    except ValueError as error:
        return str(error).splitlines()[0], None
    bad = [name for name, g in grads.items() if not g.isfinite().all()]
    return f"the gradient of {', '.join(bad) or 'the loss'} is not finite", None
