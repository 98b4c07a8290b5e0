r"""One training step, four ways: ``Step`` objects with the same signature and the same numbers.

A step turns (parameters, batch, state, key) into gradients and summed statistics.  The noise of a
step depends on its key = (seed, replica, step) alone, so the engines see the same draws:

=========== ======================================================================
"pyro"      ``pyro.infer.SVI`` computes loss and gradients: the reference
"eager"     the captured graph, operation by operation; where a program cannot be
            captured, its handlers run at every step
"compiled"  the captured graph as machine code
=========== ======================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import torch
from pyro.infer import SVI
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_vae.engine import (
    Graph,
    Parameters,
    Sums,
    WeightPrior,
    gradient_function,
    refresh_function,
)
from pyro_vae.noise import NoiseMode, keyed, seeded
from pyro_vae.objectives.base import Objective, State
from pyro_vae.program import Rows, map_rows
from pyro_vae.traces import DataScale, trace_program

if TYPE_CHECKING:
    from pyro_vae.loop import Loop


class Ask(NamedTuple):
    """What a training loop asks of a step: an update, or a refresh of these rows' state."""

    refresh: bool
    x: Rows
    weight: Tensor
    state: State
    key: tuple


# The new rows of a refresh (None after an update), and the sums: their names, and one tensor.
Answer = tuple[dict[str, Tensor] | None, tuple[str, ...], Tensor]


def stack(sums: Sums) -> tuple[tuple[str, ...], Tensor]:
    """Names and one tensor, so that a device is waited for once."""
    like = sums["weight"].dtype
    return tuple(sums), torch.stack([value.to(like) for value in sums.values()])


class Step:
    """What the training loop talks to; subclasses say how gradients come about.

    Attributes:
        engine: its name.
        reason: why this engine, one line; empty where it is what was asked for.
    """

    engine: str
    reason: str

    def grads(
        self, params: Parameters, x: Rows, weight: Tensor, state: State, key: tuple
    ) -> tuple[Parameters, Sums]:
        """Gradients and summed statistics."""
        raise NotImplementedError

    def refresh(
        self, params: Parameters, x: Rows, weight: Tensor, state: State, key: tuple
    ) -> tuple[dict[str, Tensor], Sums]:
        """New rows of the objective's state and summed statistics."""
        raise NotImplementedError

    def bind(self, loops: Sequence[Loop]) -> None:
        """Work for these loops from now on."""
        self._loops = loops

    def release(self) -> None:
        """Leave the loops' parameters and optimizers as if they had been alone."""

    def answer(self, asks: Sequence[Sequence[Ask]]) -> list[list[Answer]]:
        """Do what each loop asks for, one after another."""
        return [
            [self._answer(loop, ask) for ask in its]
            for loop, its in zip(self._loops, asks, strict=True)
        ]

    def most_at_once(self, asks: Sequence[Ask], seconds: float) -> int:
        """How many updates a loop may ask for at a time, after these asks took so long."""
        return 1

    def _answer(self, loop: Loop, ask: Ask) -> Answer:
        if ask.refresh:
            rows, sums = self.refresh(loop.parameters, *ask[1:])
            return rows, *stack(sums)
        grads, sums = self.grads(loop.parameters, *ask[1:])
        return loop.apply(grads, sums, ask)


class GraphStep(Step):
    """A captured graph, run operation by operation."""

    engine = "eager"

    def __init__(self, graph: Graph, reason: str = "") -> None:
        self.graph, self.reason = graph, reason

    def grads(self, params, x, weight, state, key):
        return self._run(self.graph.grads, params, x, weight, state, key)

    def refresh(self, params, x, weight, state, key):
        return self._run(self.graph.refresh, params, x, weight, state, key)

    def _run(self, lifted, params, x, weight, state, key):
        with torch.no_grad():
            if lifted.kept:  # draws left in the graph come from torch's generator
                with seeded(*key):
                    return lifted(params, x, weight, *state, noise=lifted.draw(key))
            return lifted(params, x, weight, *state, noise=lifted.draw(key))


class HandlerStep(Step):
    """The program's handlers run at every step: for what no graph can hold."""

    engine = "eager"

    def __init__(
        self, program: nn.Module, objective: Objective, prior: WeightPrior, reason: str
    ) -> None:
        self.reason = reason
        self._grads = gradient_function(program, objective, prior)
        self._refresh = refresh_function(program, objective)

    def grads(self, params, x, weight, state, key):
        with NoiseMode(keyed(*key)), seeded(*key):
            return self._grads(params, x, weight, *state)

    def refresh(self, params, x, weight, state, key):
        with NoiseMode(keyed(*key)), seeded(*key):
            return self._refresh(params, x, weight, *state)


class _WithState(ELBO):
    """An objective as ``SVI`` sees it, with the state of this step and its statistics kept."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective
        self.program: Any = None
        self.state = State({}, {})
        self.stats: dict[str, Tensor] = {}

    def loss_and_grads(self, model: Any, guide: Any, x: Rows) -> float:
        with DataScale() as scale:
            loss, self.stats = self.objective.terms(self.program, x, self.state)
        self.stats = {**self.stats, "loss": loss}
        (scale.value * loss.sum()).backward()
        return float(loss.detach().sum())

    loss = loss_and_grads

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return self.objective._get_trace(model, guide, args, kwargs)


class PyroStep(Step):
    """``pyro.infer.SVI`` computes loss and gradients; padding is cut off first."""

    engine = "pyro"

    def __init__(self, objective: Objective | ELBO, prior: WeightPrior, reason: str) -> None:
        self.objective, self.prior, self.reason = objective, prior, reason
        self._adapter = _WithState(objective) if isinstance(objective, Objective) else None
        self.program: Any = None

    def use(self, program: Any) -> None:
        """Work on this program from now on."""
        if program is not self.program:
            self.program = program
            # The training loop owns the one optimizer; SVI's is never stepped.
            idle = pyro.optim.SGD({"lr": 0.0})  # type: ignore[attr-defined]
            self._svi = SVI(
                program.model, program.guide, idle, loss=self._adapter or self.objective
            )

    def _answer(self, loop: Loop, ask: Ask) -> Answer:
        self.use(loop.program)
        return super()._answer(loop, ask)

    def grads(self, params, x, weight, state, key):
        count = int(weight.sum())
        x = map_rows(lambda t: t[:count], x)
        for parameter in self.program.parameters():
            parameter.grad = None
        if self._adapter is not None:
            self._adapter.program = self.program
            self._adapter.state = State({n: r[:count] for n, r in state.rows.items()}, state.shared)
        with torch.enable_grad(), NoiseMode(keyed(*key)), seeded(*key), DataScale() as scale:
            loss = self._svi.loss_and_grads(self._svi.model, self._svi.guide, x)
        found = dict(self.program.named_parameters())
        grads = {
            name: torch.zeros_like(p) if found[name].grad is None else found[name].grad
            for name, p in params.items()
        }
        stats = self._adapter.stats if self._adapter else {}
        sums = {name: value.detach().sum() for name, value in stats.items()}
        sums.setdefault("loss", torch.as_tensor(float(loss) / scale.value))
        grads, norm = self.prior.add(grads, params, weight, scale.value)
        sums |= {"weight": weight.sum(), "grad_norm": norm * weight.sum()}
        return grads, sums

    def refresh(self, params, x, weight, state, key):
        refresh = refresh_function(self.program, self._adapter.objective)  # type: ignore[union-attr]
        with NoiseMode(keyed(*key)), seeded(*key):
            return refresh(params, x, weight, *state)


def blame(program: nn.Module, x: Rows, grads: Parameters, key: tuple) -> str:
    """What is not finite at this step: a site and its first row, or else parameters."""
    from pyro_vae.traces import log_density, sites_of

    try:
        with torch.no_grad(), NoiseMode(keyed(*key)), seeded(*key), pyro.validation_enabled(False):
            guide, model = trace_program(program, x, reparameterize=False)
            for where, trace in (("guide", guide), ("model", model)):
                for name, site in sites_of(trace).items():
                    value = log_density(site)
                    if not value.isfinite().all():
                        rows = (~value.isfinite()).nonzero()
                        row = int(rows[0, -1]) if rows.numel() else 0
                        return (
                            f'the {where}\'s site "{name}" has log density '
                            f"{float(value.flatten()[(~value.isfinite()).flatten()][0])} "
                            f"at row {row} of the batch"
                        )
    except ValueError as error:  # a distribution refused its parameters
        return str(error).splitlines()[0]
    bad = [name for name, g in grads.items() if not g.isfinite().all()]
    return f"the gradient of {', '.join(bad) or 'the loss'} is not finite"
