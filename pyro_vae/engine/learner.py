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


@dataclass
class Learner:
    """Parameters with the optimizer that moves them, under one objective.

    Steps work on learners and know no training loop; a loop has one.

    Attributes:
        parameters: of the program, those that are trained.
        clip: the largest norm of the whole gradient.
        name: which of several it is, for messages.
    """

    program: nn.Module
    parameters: Parameters
    objective: Objective | ELBO
    optimizer: torch.optim.Optimizer
    clip: float | None = None
    name: str = ""

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
        self.optimizer.step()
        return answer

    def require_finite(
        self, means: dict[str, float], ask: Ask, grads: Parameters | None = None
    ) -> None:
        """Refuse an update that is not finite, and say what was not.

        Raises:
            ValueError: naming the step, and the site and row, or the parameters.
        """
        if math.isfinite(means["loss"]) and math.isfinite(means["grad_norm"]):
            return
        raise ValueError(
            f"{self.name}step {ask.key[-1] + 1}: the loss is {means['loss']:.4g} and the "
            f"gradient's norm {means['grad_norm']:.4g}; "
            f"{blame(self.program, ask.x, grads or {}, ask.key)}. The parameters are those before "
            "this step: lower lr, set clip, or bound the scale that collapses"
        )


def stack(sums: Sums) -> tuple[tuple[str, ...], Tensor]:
    """Names and one tensor, so that a device is waited for once."""
    like = sums["weight"].dtype
    return tuple(sums), torch.stack([value.to(like) for value in sums.values()])


def means_of(names: tuple[str, ...], sums: Sequence[float]) -> dict[str, float]:
    """Batch means, from sums."""
    numbers = dict(zip(names, sums, strict=True))
    rows = numbers.pop("weight")
    return {name: value / rows for name, value in numbers.items()}


def blame(program: nn.Module, x: Rows, grads: Parameters, key: tuple) -> str:
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
                )
    except ValueError as error:  # a distribution refused its parameters
        return str(error).splitlines()[0]
    try:  # densities are finite: then what Pyro's validation, or a part's own, has against the rows
        with torch.no_grad(), looking(program, key), pyro.validation_enabled(True):
            sites_of_both(program, x, reparameterize=False)
    except ValueError as error:
        return str(error).splitlines()[0]
    bad = [name for name, g in grads.items() if not g.isfinite().all()]
    return f"the gradient of {', '.join(bad) or 'the loss'} is not finite"
