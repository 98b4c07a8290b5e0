r"""One training step, three ways: ``Step`` objects with the same signature and the same numbers.

A step turns (parameters, batch, state, key) into gradients and summed statistics.  The noise of a
step depends on its key = (seed, replica, step) alone, so the engines see the same draws:

=========== ======================================================================
"pyro"      ``pyro.infer.SVI`` computes loss and gradients: the reference
"eager"     the captured graph, operation by operation; where a program cannot be
            captured, its handlers run at every step
=========== ======================================================================
"""

from __future__ import annotations

from typing import Any, Protocol

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_vae.engine import (
    Graph,
    Parameters,
    Sums,
    capture,
    gradient_function,
    refresh_function,
)
from pyro_vae.lifting import Refusal
from pyro_vae.noise import NoiseMode, keyed, seeded
from pyro_vae.objectives.aevb import AEVB
from pyro_vae.objectives.base import Objective, State
from pyro_vae.program import Rows, map_rows
from pyro_vae.traces import DataScale, trace_program

Key = tuple[int, int, int]  # seed, replica, step


class Step(Protocol):
    """What the training loop calls."""

    engine: str
    reason: str  # why this engine, one line; empty where it is what was asked for

    def grads(
        self, params: Parameters, x: Rows, weight: Tensor, state: State, key: Key
    ) -> tuple[Parameters, Sums]: ...

    def refresh(
        self, params: Parameters, x: Rows, weight: Tensor, state: State, key: Key
    ) -> tuple[dict[str, Tensor], Sums]: ...


def translate(objective: Any) -> Objective | ELBO:
    """Our objective for Pyro's ``Trace_ELBO`` and ``TraceMeanField_ELBO``; others stay Pyro's."""
    if isinstance(objective, type) and issubclass(objective, ELBO):
        raise TypeError(
            f"objective is the class {objective.__name__}, expected an instance: "
            f"write {objective.__name__}()"
        )
    if isinstance(objective, Objective):
        return objective
    if type(objective) is Trace_ELBO:
        return AEVB("A", objective.num_particles)
    if type(objective) is TraceMeanField_ELBO:
        return AEVB("B", objective.num_particles)
    if isinstance(objective, ELBO):
        return objective
    raise TypeError(
        f"objective is {objective!r}, expected one of pv.objectives or a Pyro ELBO, such as "
        "pv.objectives.AEVB()"
    )


def make_step(
    program: nn.Module, objective: Objective | ELBO, engine: str, x: Rows, state: State
) -> Step:
    """The step for an engine's name, captured for batches of the form of ``x``."""
    if engine not in ("auto", "eager", "pyro"):
        raise ValueError(f'engine is {engine!r}, expected "auto", "eager" or "pyro"')
    if not isinstance(objective, Objective):
        reason = "" if engine == "pyro" else f"{type(objective).__name__} is Pyro's own objective"
        return PyroStep(program, objective, reason)
    if engine == "pyro":
        return PyroStep(program, objective, "")
    graph = capture(program, objective, x, state)
    if isinstance(graph, Refusal):
        return HandlerStep(program, objective, f"not captured: {graph}")
    return GraphStep(graph)


class GraphStep:
    """The captured graph, run operation by operation."""

    engine = "eager"
    reason = ""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

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


class HandlerStep:
    """The program's handlers run at every step: for what no graph can hold."""

    engine = "eager"

    def __init__(self, program: nn.Module, objective: Objective, reason: str) -> None:
        self.reason = reason
        self._grads = gradient_function(program, objective)
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


class PyroStep:
    """``pyro.infer.SVI`` computes loss and gradients; padding is cut off first."""

    engine = "pyro"

    def __init__(self, program: nn.Module, objective: Objective | ELBO, reason: str) -> None:
        self.program, self.reason = program, reason
        self._adapter = _WithState(objective) if isinstance(objective, Objective) else None
        self._refresh = refresh_function(program, objective) if self._adapter else None  # type: ignore[arg-type]
        # The training loop owns the one optimizer; SVI's is never stepped.
        idle = pyro.optim.SGD({"lr": 0.0})  # type: ignore[attr-defined]
        self._svi = SVI(program.model, program.guide, idle, loss=self._adapter or objective)

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
        sums["weight"] = weight.sum()
        return grads, sums

    def refresh(self, params, x, weight, state, key):
        with NoiseMode(keyed(*key)), seeded(*key):
            return self._refresh(params, x, weight, *state)  # type: ignore[misc]


def blame(program: nn.Module, x: Rows, grads: Parameters, key: Key) -> str:
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


def plate_scale(program: nn.Module, x: Rows) -> float:
    """N / B of the data plate, 1 where it is not subsampled."""
    with torch.no_grad(), seeded(0), DataScale() as scale:
        trace_program(program, x, reparameterize=False)
    return scale.value
