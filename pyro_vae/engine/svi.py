"""``pyro.infer.SVI`` as a source of gradients: the reference that the others equal."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.infer import SVI
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_vae.densities.plates import name_of_rows_plate
from pyro_vae.densities.traces import DataScale
from pyro_vae.engine.functions import WeightPrior, refresh_function
from pyro_vae.engine.sources import GradientSource
from pyro_vae.noise import NoiseMode, seeded
from pyro_vae.objectives.base import Objective, State
from pyro_vae.program.rows import Rows, map_rows


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
        self.objective.require_unweighed(scale.weighed)
        self.stats = {**self.stats, "loss": loss}
        (scale.value * loss.sum()).backward()
        return float(loss.detach().sum())

    loss = loss_and_grads

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return self.objective._get_trace(model, guide, args, kwargs)


class SVISource(GradientSource):
    """``pyro.infer.SVI`` computes loss and gradients; padding is cut off first."""

    engine = "pyro"

    def __init__(
        self,
        program: nn.Module,
        objective: Objective | ELBO,
        prior: WeightPrior,
        reason: str = "",
    ) -> None:
        self.program: Any = program
        self.objective, self.prior, self.reason = objective, prior, reason
        self._adapter = _WithState(objective) if isinstance(objective, Objective) else None
        # The learner owns the one optimizer; SVI's is never stepped.
        idle = pyro.optim.SGD({"lr": 0.0})  # type: ignore[attr-defined]
        loss = self._adapter or objective
        self._svi = SVI(self.program.model, self.program.guide, idle, loss=loss)

    def on(self, program: nn.Module) -> SVISource:
        """Gradients are written to the parameters of one program."""
        return SVISource(program, self.objective, self.prior, self.reason)

    def grads(self, params, x, weight, state, key):
        count = int(weight.sum())
        x = map_rows(lambda t: t[:count], x)
        for parameter in self.program.parameters():
            parameter.grad = None
        if self._adapter is not None:
            self._adapter.program = self.program
            self._adapter.state = State({n: r[:count] for n, r in state.rows.items()}, state.shared)
        plate = None if self._adapter else name_of_rows_plate(self.program, x)
        with (
            torch.enable_grad(),
            NoiseMode(self.noise(*key)),
            seeded(*key),
            DataScale(plate) as scale,
        ):
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
        with NoiseMode(self.noise(*key)), seeded(*key):
            return refresh(params, x, weight, *state)
