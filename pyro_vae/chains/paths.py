r"""A path from a density that one can draw from to the posterior, in unconstrained space.

.. math:: \log f_\beta(u) = (1 - \beta) \log q(u) + \beta \log p(u, x), \qquad 0 \le \beta \le 1,

with q the guide or the prior of the latents, and u as in :mod:`~pyro_vae.chains.latents`.  Both
ends and their gradients come from one graph; what depends on x alone is computed once a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyro_vae.chains.latents import Latents
from pyro_vae.densities.look import looking
from pyro_vae.densities.sites import Sites, latents_of
from pyro_vae.densities.traces import At, sites_of
from pyro_vae.graphs.compiling import repaid
from pyro_vae.graphs.lifted import Refusal
from pyro_vae.graphs.lifting import lift
from pyro_vae.graphs.probing import nudged, others
from pyro_vae.graphs.splitting import split
from pyro_vae.noise import NoiseMode, keyed, seeded
from pyro_vae.program.calling import call_with
from pyro_vae.program.rows import Rows, map_rows

logger = logging.getLogger("pyro_vae")

Origin = Literal["guide", "prior"]
USE_THE_PRIOR = 'anneal from the prior, proposal="prior"'
FEW = 16  # rows that a guide's support is looked at on


class Ends(NamedTuple):
    """Both log densities at positions u (R, J), and their gradients.

    Attributes:
        log_q, log_p: (R,).
        slope_q, slope_p: (R, J).
    """

    log_q: Tensor
    log_p: Tensor
    slope_q: Tensor
    slope_p: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """log p(u, x) - log q(u), (R,): of the power that f_beta has of it."""
        return self.log_p - self.log_q

    def at(self, beta: Tensor) -> tuple[Tensor, Tensor]:
        """log f_beta and its gradient, beta (R,)."""
        column = beta.unsqueeze(-1)
        value = torch.lerp(self.log_q, self.log_p, beta)
        return value, torch.lerp(self.slope_q, self.slope_p, column)


OfRows = Callable[[Tensor], Ends]


class Path:
    """The path of a program, for batches of any rows.

    Args:
        latents, program: whose.
        origin: "guide", from q(z | x), or "prior", from the latents' own laws.
        x: example rows.
        calls: how often both densities will be asked for, about.

    Raises:
        ValueError: for latents under a mask; for a guide whose density at given latents is not
            known, or that does not reach where the prior does.
    """

    def __init__(
        self, latents: Latents, program: nn.Module, origin: Origin, x: Rows, calls: int = 0
    ) -> None:
        self.latents, self.program, self.origin, self._calls = latents, program, origin, calls
        self._parameters = {name: p.detach() for name, p in program.named_parameters()}
        self._graphs: dict[Any, Any] = {}
        _require_unmasked(program, x)
        if origin == "guide":
            _require_density(latents, program, x)

    def draw(self, x: Rows, *key: int) -> Tensor:
        """A draw of q for each row, (R, J)."""
        drawn = getattr(self.latents, f"from_{self.origin}")
        with NoiseMode(keyed(*key)), seeded(*key), pyro.validation_enabled(False):
            return drawn(self.program, x)

    def at_rows(self, x: Rows, u: Tensor) -> OfRows:
        """Both ends as a function of u at these rows; ``u`` is an example."""
        leaves = pytree.tree_leaves((self._parameters, x))
        form = (tuple((t.shape, t.dtype) for t in leaves), u.shape, u.dtype)
        if form not in self._graphs:
            probes = [(nudged(self._parameters), *other) for other in others((x, 0.5 * u))]
            lifted = lift(self._both, self._parameters, x, u, probes=probes)
            if isinstance(lifted, Refusal):
                logger.info("annealing runs the program's handlers: not captured: %s", lifted)
                self._graphs[form] = lifted
            else:
                head, tail = split(lifted.graph, len(leaves))
                with torch.no_grad():
                    code = repaid(tail, self._calls, *head(*leaves), u)
                self._graphs[form] = (head, code, lifted)
        graph = self._graphs[form]
        if isinstance(graph, Refusal):
            return lambda u: self._both(self._parameters, x, u)
        head, tail, lifted = graph
        with torch.no_grad():
            known = head(*leaves)

        def run(u: Tensor) -> Ends:
            with torch.no_grad():
                return lifted.unflatten(tail(*known, u))

        return run

    def _both(self, parameters: dict[str, Tensor], x: Rows, u: Tensor) -> Ends:
        return call_with(self.program, parameters, self._ends, x, u)

    def _ends(self, program: nn.Module, x: Rows, u: Tensor) -> Ends:
        with torch.enable_grad(), pyro.validation_enabled(False):
            leaf = u.detach().requires_grad_()
            if self.origin == "prior":
                log_p, log_q = self.latents.log_terms(program, x, leaf)
            else:
                log_p = self.latents.log_joint(program, x, leaf)
                log_q = self.latents.log_guide(program, x, leaf)
            slopes = [_slope(value, leaf) for value in (log_q, log_p)]
        return Ends(log_q.detach(), log_p.detach(), *slopes)


def _slope(value: Tensor, leaf: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (slope,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True, retain_graph=True)
    return torch.zeros_like(leaf) if slope is None else slope


def _require_unmasked(program: nn.Module, x: Rows) -> None:
    with torch.no_grad(), looking(program):
        sites = latents_of(sites_of(program, "model", map_rows(lambda t: t[:FEW], x)))
    for name, site in sites.items():
        if site.is_masked:
            raise ValueError(
                f'latent site "{name}" is under a mask, so log p(x, z) has no density of what is '
                'left out, expected one for every latent: use method="importance" with '
                'proposal="guide", where the guide has the same mask'
            )


def _require_density(latents: Latents, program: nn.Module, x: Rows) -> None:
    """Refuse a guide without a density on all of the unconstrained space."""
    few = map_rows(lambda t: t[:FEW], x)
    with torch.no_grad(), looking(program):
        sites: Sites = latents_of(sites_of(program, "guide", few))
        if set(sites) != set(latents.names):
            raise ValueError(
                f"the guide draws {', '.join(sites) or 'nothing'} and the model "
                f"{', '.join(latents.names)}, so the guide has no density of the model's latents "
                f"alone: {USE_THE_PRIOR}"
            )
        for name, site in sites.items():
            if site.is_point:
                raise ValueError(
                    f'the guide of "{name}" is a point (Delta), which has no density: '
                    f"{USE_THE_PRIOR}"
                )
            if site.is_masked:
                raise ValueError(f'the guide of "{name}" is under a mask: {USE_THE_PRIOR}')
        values = latents.constrain(latents.from_prior(program, few))
        try:
            given = sites_of(program, "guide", few, At(values))
            for name in latents.names:
                inside = given[name].law.support.check(values[name])
                if not bool(inside.all()):
                    raise ValueError(
                        f'the guide of "{name}" ({given[name].family}) leaves out values that the '
                        f"prior reaches: {USE_THE_PRIOR}, or give the guide the prior's support"
                    )
                given[name].density()
        except (ValueError, NotImplementedError, KeyError) as error:
            if USE_THE_PRIOR in str(error):
                raise
            raise ValueError(
                f"the guide's density at given latents is not known ({error}): {USE_THE_PRIOR}"
            ) from error
