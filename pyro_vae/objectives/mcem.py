r"""Monte Carlo EM: learn the model from draws of its own posterior, without an encoder.

.. math:: \text{E: } z \leftarrow \text{one HMC move towards } p_\theta(z \mid x), \qquad
          \text{M: } \max_\theta\; \log p_\theta(x, z), \text{ a few updates at this } z.

Every datum has a chain of its own, which goes on where it stood when the datum was last seen.
Sources: Wei & Tanner (1990); Kingma & Welling (2014), section 5 and appendix E.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.chains.hmc import NoiseSource, adapt, transition, value_and_gradient
from pyro_vae.chains.latents import Latents
from pyro_vae.objectives.base import Objective, State, Stats
from pyro_vae.program.rows import Rows


class MonteCarloEM(Objective):
    """The paper's baseline of appendix E: HMC draws in place of a guide.

    Args:
        leapfrog_steps: of each move.
        target_accept: the acceptance that the one step size, shared by all data, is tuned to.
        updates_per_sample: optimizer updates on a minibatch before its chains move again.
        rate: how fast the step size follows, log s <- log s + rate (mean acceptance - target).
        jitter: each row's step is s times a uniform draw from [1 - jitter, 1 + jitter]; without it
            ten steps at 90 % acceptance come close to a full turn of a normal posterior, and the
            chain is back where it started.

    The loss is -log p(x, z) at the chains' z.  No guide is trained, so there is no bound: compare
    by ``pv.log_evidence(proposal="hmc")``.  Samples are rows x updates; a move costs
    ``leapfrog_steps + 1`` gradients for each row besides, the first of them where it starts, of
    which the column ``leapfrogs`` counts the ``leapfrog_steps``.

    Departs from the paper's author's code in visiting minibatches, not all data at each E-step,
    in the rule that tunes the step, and in its jitter.
    """

    has_bound = False
    takes_global = False
    needs_rsample = False
    least_particles = None
    scores_twice = True

    def __init__(
        self,
        leapfrog_steps: int = 10,
        target_accept: float = 0.9,
        updates_per_sample: int = 5,
        *,
        rate: float = 0.1,
        jitter: float = 0.5,
    ) -> None:
        super().__init__()
        self.leapfrog_steps = errors.whole("leapfrog_steps", leapfrog_steps)
        self.target_accept = errors.within("target_accept", target_accept, "(0, 1)")
        self.updates_per_sample = errors.whole("updates_per_sample", updates_per_sample)
        self.rate = errors.positive("rate", rate)
        self.jitter = errors.within("jitter", jitter, "[0, 1)")
        self.refresh_every = self.updates_per_sample

    def init(self, program: Any, x: Rows) -> State:
        latents = Latents.of(program, x)
        u = latents.from_prior(program, x)  # (N, J)
        # Stable for a unit-variance posterior; tuning takes it from there.
        return State({"z": u}, {"log_step": u.new_tensor(0.3 * latents.dim**-0.25).log()})

    def unit(self, program: Any, x: Rows, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """log p(x, u) and its gradient in u: what a move evaluates at every step."""
        latents = Latents.of(program, x)
        return value_and_gradient(partial(latents.log_joint, program, x))(rows["z"])

    def refresh(
        self,
        program: Any,
        x: Rows,
        state: State,
        unit: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]] | None = None,
        noise: NoiseSource | None = None,
    ) -> tuple[dict[str, Tensor], Stats]:
        u = state.rows["z"]
        whole = partial(self.unit, program, x) if unit is None else unit

        def evaluate(u: Tensor) -> tuple[Tensor, Tensor]:
            return whole({"z": u})

        moved = transition(
            evaluate,
            u,
            evaluate(u),
            step_size=state.shared["log_step"].exp(),
            leapfrog_steps=self.leapfrog_steps,
            jitter=self.jitter,
            noise=noise,
        )
        stats = {
            "accept": moved.accept,
            "diverging": moved.diverging.to(moved.accept.dtype),
            "leapfrogs": torch.full_like(moved.accept, self.leapfrog_steps),
        }
        return {"z": moved.u}, stats

    def terms(self, program: Any, x: Rows, state: State) -> tuple[Tensor, Stats]:
        latents = Latents.of(program, x)
        log_p = latents.log_joint(program, x, state.rows["z"])  # (B,)
        return -log_p, {"log_joint": log_p.detach()}

    def advance(self, shared: dict[str, Tensor], means: dict[str, Tensor]) -> dict[str, Tensor]:
        if "accept" not in means:  # a gradient step, not a move
            return shared
        log_step = adapt(
            shared["log_step"], means["accept"], target=self.target_accept, rate=self.rate
        )
        return {"log_step": log_step}

    def leapfrogs(self, rows: int) -> int:
        """Leapfrog steps of one move of this many rows, one gradient of log p(x, z) each.

        The gradient at the start of a move, which the update before has changed, is not counted.
        """
        return rows * self.leapfrog_steps
