"""Groups that are made elsewhere: ranks of simulated latents, and draws better than the guide's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyro_vae.calibration import simulated_ranks
from pyro_vae.inference_data.assembling import Variable, Variables
from pyro_vae.inference_data.draws import Groups
from pyro_vae.inference_data.naming import Naming, written
from pyro_vae.inference_data.programs import Plan
from pyro_vae.noise import Stream, seed_of
from pyro_vae.program.rows import Rows
from pyro_vae.refinement import refine

CHAINS = 4  # of Hamiltonian Monte Carlo, for one of several programs
AMONG = 99  # draws that a rank counts, so that ranks fall into 100 equal cells


def calibration_places(
    plans: Sequence[Plan], rows: Rows, options: Any, naming: Naming
) -> Variables:
    """Where simulated truths lie among the guide's draws, from 0 to 1: (chain, draw, ...).

    A draw is a simulated pair of latents and data; a chain is a program.
    """
    found: list[dict[str, np.ndarray]] = []
    for plan in plans:
        ranks = simulated_ranks(
            plan.program, rows, num_simulations=options.num_simulations, num_draws=AMONG,
            seed=options.seed, batch_size=options.batch_size,
        )  # fmt: skip
        places, mine = ranks.pit(), {}
        for name, shape in plan.shapes.items():
            own = [places.pop(key) for key in list(places) if _is_of(key, name)]
            if own and len(own) == math.prod(shape):
                mine[name] = np.stack(own, -1).reshape(-1, *shape)
        found.append(mine | places)
    result = {}
    for name in found[0]:
        dims = naming.dims(name) if name in plans[0].shapes else ()
        values = np.stack([each[name] for each in found])
        result[written(name)] = Variable(("chain", "draw", *dims), values)
    return result


def _is_of(key: str, site: str) -> bool:
    """Whether a quantity is a coordinate of a site: "z", "z[0]" or "z[0,1]"."""
    return key == site or (key.startswith(f"{site}[") and key.endswith("]"))


class Refined:
    """Draws of ``refine`` by one of so many programs, for a batch of rows after the other."""

    def __init__(self, program: Any, number: int, programs: int, options: Any) -> None:
        self.program, self.number = program, number
        self.method, self.seed = options.refined, options.seed
        alone = programs == 1
        self.particles = options.num_draws * (options.chains if alone else 1)
        # Those of one program are the object's; one of several programs has them all in its own.
        self.chains = options.chains if alone else max(1, min(CHAINS, self.particles // 4))

    def draws(self, rows: Rows, start: int) -> tuple[Groups, dict[str, np.ndarray]]:
        """The group of these rows, and what says how far to trust it; ``start`` is the first's."""
        seed = seed_of(*Stream.REFINED.key(self.seed, self.number, start)) >> 1
        better = refine(
            self.program, rows, method=self.method, num_draws=self.particles,
            chains=self.chains, seed=seed, progress=False,
        )  # fmt: skip
        draws = {name: value.cpu().numpy() for name, value in better.values.items()}
        judged = {"khat": better.khat, "ess": better.ess, "rhat": better.rhat}
        said = {f"refined_{n}": v.cpu().numpy() for n, v in judged.items() if v is not None}
        return {"posterior_refined": draws}, said


def require_own_latents(plan: Plan, options: Any) -> None:
    """Refuse what is done for each datum where data share latents."""
    asked = {"num_simulations": options.num_simulations, "refined": options.refined}
    for name, value in asked.items():
        if value and plan.shared:
            raise ValueError(
                f"{name} is {value!r} and all data share {', '.join(plan.shared)}, expected "
                "latents of each datum alone, because it is done for each datum: leave it out"
            )
