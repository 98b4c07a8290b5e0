"""What chains run on: log p(u, x) and its gradient at fixed rows, as a graph where it can be."""

from __future__ import annotations

import logging
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyro_vae.chains.hmc import Evaluate, value_and_gradient
from pyro_vae.chains.latents import Latents
from pyro_vae.graphs.compiling import repaid
from pyro_vae.graphs.lifted import Refusal
from pyro_vae.graphs.lifting import lift
from pyro_vae.graphs.probing import nudged, others
from pyro_vae.program.calling import call_with
from pyro_vae.program.rows import Rows

logger = logging.getLogger("pyro_vae")


def captured(
    latents: Latents, program: nn.Module, x: Rows, u: Tensor, calls: int
) -> tuple[Evaluate, str]:
    """log p and its gradient at fixed parameters, and how they are computed.

    Args:
        latents, program, x: whose.
        u: an example of positions.
        calls: how often they will be asked for.

    Returns:
        The function; and "compiled" where so many calls repay that, "graph", or "handlers" where
        the program cannot be captured.
    """
    parameters = {name: p.detach() for name, p in program.named_parameters()}

    def unit(parameters: dict[str, Tensor], x: Rows, u: Tensor) -> tuple[Tensor, Tensor]:
        def evaluate(program: nn.Module) -> tuple[Tensor, Tensor]:
            return value_and_gradient(partial(latents.log_joint, program, x))(u)

        return call_with(program, parameters, evaluate)

    probes = [(nudged(parameters), *other) for other in others((x, 0.5 * u))]
    # One gradient, not the whole move: as quick to run, and L times quicker to capture.
    lifted = lift(unit, parameters, x, u, probes=probes)
    if isinstance(lifted, Refusal):
        logger.info("HMC runs the program's handlers: not captured: %s", lifted)
        return partial(unit, parameters, x), "handlers"
    fixed = pytree.tree_leaves((parameters, x))
    code = repaid(lifted.graph, calls, *fixed, u)

    def run(u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            value, gradient = code(*fixed, u)
        return value, gradient

    return run, "graph" if code is lifted.graph else "compiled"


def in_coordinates(evaluate: Evaluate, factor: Tensor) -> Evaluate:
    r"""The same along v, u = F v, for a factor F of each row, (B, J, J).

    HMC with unit mass in v is HMC in u whose mass matrix is the inverse of F F^T (Neal, 2011,
    section 4.1).
    """

    def run(v: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = evaluate(applied(factor, v))
        return value, applied(factor.mT, gradient)

    return run


def applied(factor: Tensor, v: Tensor) -> Tensor:
    """F v of each row, (B, J)."""
    return (factor.to(v) @ v.unsqueeze(-1)).squeeze(-1)  # densities may have more digits
