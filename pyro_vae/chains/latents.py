r"""The latents of a datum as one vector without bounds: where Hamiltonian Monte Carlo moves.

With z = T(u) for a bijection T from R^J onto the support of the latents,

.. math:: \log p(u, x) = \log p(x, T(u)) + \log |\det T'(u)|.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from pyro_vae.densities.enumeration import model_sites
from pyro_vae.densities.look import looking
from pyro_vae.densities.scales import one_scale
from pyro_vae.densities.sites import Site, Sites, base_law, latents_of, unmarked, values_of
from pyro_vae.densities.traces import At, sites_of
from pyro_vae.noise import LOOK, NoiseMode, keyed
from pyro_vae.program.rows import Rows, map_rows, num_rows

Moved = dict[str, tuple[Tensor, Tensor]]  # by site: its value T(u), and log |det T'(u)| (B,)


class _Part(NamedTuple):
    """One latent site's place in u."""

    name: str
    shape: tuple[int, ...]  # what a datum has of it, unconstrained: other plates, then the event
    axis: int  # of the rows in the unconstrained value, from the right
    transform: Transform

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def value_axis(self) -> int:
        """Of the rows in the value itself."""
        return self.axis - self.transform.codomain.event_dim + self.transform.domain.event_dim


@dataclass(frozen=True)
class Latents:
    """The latents of a datum, all sites together, as one unconstrained vector u (B, J).

    Made once, by :meth:`of`, from a program and an example batch; it holds for every number of rows
    and all values of the parameters, and is a constant to whoever captures a graph.

    Attributes:
        parts: where each site lies in u.
    """

    parts: tuple[_Part, ...]

    @classmethod
    def of(cls, program: Any, x: Rows) -> Latents:
        """Learn the latents from one run of the model, and check it by another.

        Torch's generators and the program's buffers are left as they were.

        Raises:
            ValueError: for what HMC cannot move: a global latent, a discrete one, an angle, a
                support without a bijection from R^n, or with bounds that depend on the row, on
                parameters or on other latents; and for a model that draws random numbers while it
                is scored, whose rows see one another, or that scales a site by ``poutine.scale``.
        """
        if num_rows(x) == 1:  # two rows show what depends on the row
            x = map_rows(lambda t: torch.cat([t, t]), x)
        with torch.enable_grad(), looking(program, validate=True):
            drawn = latents_of(unmarked(sites_of(program, "model", x)))
            if not drawn:
                raise ValueError(
                    "the model has no latent site, expected at least one in "
                    'pyro.plate("data", ...): there is nothing to sample'
                )
            latents = cls(tuple(_part(site, num_rows(x)) for site in drawn.values()))
            latents._check_rest(program, x, {n: s.value.detach() for n, s in drawn.items()})
        return latents

    @property
    def dim(self) -> int:
        """J, the number of unconstrained coordinates of a datum."""
        return sum(part.size for part in self.parts)

    @property
    def names(self) -> tuple[str, ...]:
        """The latent sites, in the model's order."""
        return tuple(part.name for part in self.parts)

    def constrain(self, u: Tensor) -> dict[str, Tensor]:
        """z = T(u): values by site, each in its own shape and support.

        Args:
            u: (..., B, J); leading dimensions stay in front.
        """
        return {name: value for name, (value, _) in self._forward(u).items()}

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """u = T^-1(z), (..., B, J): the inverse of :meth:`constrain`.

        Raises:
            ValueError: where a site is missing, or there is one too many.
        """
        if set(values) != set(self.names):
            raise ValueError(
                f"values are given for {sorted(values)}, expected {sorted(self.names)}: pass one "
                "for each latent site of the model"
            )
        columns = []
        for part in self.parts:
            own = part.transform.inv(values[part.name])
            own = own.movedim(part.axis, own.dim() - len(part.shape) - 1)  # (..., B, *shape)
            columns.append(own.reshape(*own.shape[: own.dim() - len(part.shape)], part.size))
        return torch.cat(columns, dim=-1)

    def log_joint(self, program: Any, x: Rows, u: Tensor) -> Tensor:
        """log p(x, T(u)) + log |det T'(u)|, (B,) nats, unscaled; differentiable.

        Raises:
            ValueError: where u has another shape than (rows of x, J).
        """
        expected = (num_rows(x), self.dim)
        if u.shape != expected:
            raise ValueError(
                f"u has shape {tuple(u.shape)}, expected (B, J) = {expected} for these rows and "
                f"the latents {', '.join(self.names)}: start from latents.from_prior(program, x)"
            )
        moved = self._forward(u)
        sites = self._scored(program, x, {name: value for name, (value, _) in moved.items()})
        return _joint(sites, moved)

    def log_terms(self, program: Any, x: Rows, u: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`log_joint`, and the log density of u as :meth:`drawn` draws it, both (B,)."""
        moved = self._forward(u)
        sites = self._scored(program, x, {name: value for name, (value, _) in moved.items()})
        return _joint(sites, moved), self._log_law(sites, moved)

    def log_guide(self, program: Any, x: Rows, u: Tensor) -> Tensor:
        """log q(T(u) | x) + log |det T'(u)|, (B,): the guide's density of u."""
        moved = self._forward(u)
        values = {name: value for name, (value, _) in moved.items()}
        sites = sites_of(program, "guide", x, At(values))
        terms = [moved[name][1] + sites[name].per_datum() for name in self.names]
        return sum(terms[1:], terms[0])

    def log_det(self, u: Tensor) -> Tensor:
        """log |det T'(u)|, (..., B): what log densities of z and of u differ by."""
        terms = [log_det for _, log_det in self._forward(u).values()]
        return sum(terms[1:], terms[0])

    def drawn(self, program: Any, x: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """An ancestral draw of the latents given the covariates, and its :meth:`log_terms`.

        The difference of the two, log p(x | z) as a rule, is its log weight among the posterior's
        draws.  One run of the model gives all three.
        """
        drawn = sites_of(program, "model", x)
        values = values_of(unmarked(drawn))
        summed = len(values) < len(latents_of(drawn))
        sites = self._scored(program, x, values) if summed else drawn
        u = self.unconstrain(values)
        moved = self._forward(u)
        return u, _joint(sites, moved), self._log_law(sites, moved)

    def from_prior(self, program: Any, x: Rows) -> Tensor:
        """An ancestral draw of the latents given the covariates, (B, J)."""
        with torch.no_grad():
            return self.unconstrain(values_of(unmarked(sites_of(program, "model", x))))

    def from_guide(self, program: Any, x: Rows) -> Tensor:
        """A draw of the latents from q(z | x), (B, J)."""
        with torch.no_grad():
            return self.unconstrain(values_of(sites_of(program, "guide", x)))

    # ---

    def _forward(self, u: Tensor) -> Moved:
        """Each site's value, and log |det T'| (..., B)."""
        if u.dim() < 2 or u.shape[-1] != self.dim:
            raise ValueError(
                f"u has shape {tuple(u.shape)}, expected (..., B, {self.dim}), one column for each "
                f"unconstrained coordinate of {', '.join(self.names)}"
            )
        result = {}
        lead = u.dim() - 2
        columns = u.split([part.size for part in self.parts], dim=-1)
        for part, column in zip(self.parts, columns, strict=True):
            own = column.reshape(*u.shape[:-1], *part.shape).movedim(lead, part.axis)
            value = part.transform(own)
            log_det = part.transform.log_abs_det_jacobian(own, value)
            rows_first = log_det.movedim(part.axis + part.transform.domain.event_dim, lead)
            result[part.name] = value, rows_first.reshape(*u.shape[:-1], -1).sum(-1)
        return result

    def _log_law(self, sites: Sites, moved: Moved) -> Tensor:
        """The log density of u that the latents' laws give it, (B,)."""
        terms = [moved[name][1] + _log_law(sites[name]) for name in self.names]
        return sum(terms[1:], terms[0])

    def _scored(self, program: Any, x: Rows, values: dict[str, Tensor]) -> Sites:
        return model_sites(program, x, values)

    def _check_rest(self, program: Any, x: Rows, values: dict[str, Tensor]) -> None:
        """The other sites are a function of the latents, row by row, and scaled by the plate alone.

        Those outside the plate do not depend on the latents.
        """
        leaves = {name: value.requires_grad_() for name, value in values.items()}
        with NoiseMode(keyed(*LOOK)) as mode:
            sites = self._scored(program, x, leaves)
        if mode.asked or mode.kept:
            raise ValueError(
                "the model draws random numbers besides its latent sites, expected log p(x, z) to "
                "be a function of z: call program.eval() if that is dropout, or make the draws "
                'sites in pyro.plate("data", ...)'
            )
        one_scale({}, sites)
        first = next(iter(leaves.values())).new_zeros(())  # log p(x, z) of row 0
        for name, site in sites.items():
            if not site.is_global:
                first = first + site.per_datum()[0]
            elif _slopes(site.density().sum(), leaves):
                raise ValueError(
                    f'site "{name}" depends on the latents and is outside pyro.plate("data", ...), '
                    "expected each datum's density in its own row: indent it under the plate"
                )
        for name, slope in _slopes(first, leaves).items():
            others = slope.movedim(_axis(sites[name]), 0)[1:]
            if bool((others.nan_to_num() != 0).any()):
                raise ValueError(
                    f'log p(x, z) of row 0 depends on "{name}" of other rows, expected rows that '
                    "are independent of each other: replace batch normalization by nn.LayerNorm, "
                    "or freeze it with .eval(); pv.check(program, x) looks for other causes"
                )


def _slopes(total: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of a number in each of the leaves that it depends on."""
    if not total.requires_grad:
        return {}
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, retain_graph=True)
    return {name: g for name, g in zip(leaves, found, strict=True) if g is not None}


def _axis(site: Site) -> int:
    """Of the rows in a value, from the right."""
    if site.axis is None:
        raise ValueError(
            f'latent site "{site.name}" is not in a vectorized pyro.plate("data", ...), expected '
            "every latent to belong to a row: indent it under the plate; where all data share it, "
            "fix it with pyro.poutine.condition, or learn it as a parameter"
        )
    return site.axis - len(site.event_shape)


def _part(site: Site, rows: int) -> _Part:
    """A latent site's place in u."""
    name, law, axis = f'latent site "{site.name}"', site.law, _axis(site)
    if law.support.is_discrete:
        raise ValueError(
            f"{name} is discrete ({type(law).__name__}), and Hamiltonian Monte Carlo moves along "
            'gradients: score by draws of the guide, proposal="guide"; train by WakeSleep(), '
            "ReweightedWakeSleep() or ScoreFunction(); or sum it out inside the likelihood"
        )
    if _is_angle(law):
        raise ValueError(
            f"{name} is an angle ({site.family}), expected a density that does not "
            "repeat on the real line, where HMC would wander from period to period: train by "
            'AEVB() or WakeSleep(), and take log p(x) with proposal="guide"'
        )
    support = _fixed(law.support, axis, name)
    try:
        transform = biject_to(support)
    except NotImplementedError:
        raise ValueError(
            f"{name} has the support {support}, expected one that torch's biject_to maps from "
            "R^n: choose another distribution for it"
        ) from None
    axis += transform.codomain.event_dim - transform.domain.event_dim
    shape = list(transform.inv(site.value.detach()).shape)
    if shape.pop(axis) != rows:
        raise ValueError(
            f"{name} has shape {tuple(site.value.shape)} and x has {rows} rows, expected one "
            f'draw a row: write `with pyro.plate("data", len(x)):`'
        )
    return _Part(site.name, tuple(shape), axis, transform)


def _joint(sites: Sites, moved: Moved) -> Tensor:
    """log p(x, T(u)) + log |det T'(u)| from the model's sites, (B,)."""
    terms = [log_det for _, log_det in moved.values()]
    terms += [site.per_datum() for site in sites.values() if not site.is_global]
    return sum(terms[1:], terms[0])


def _log_law(site: Site) -> Tensor:
    """The log density that a latent was drawn from, (B,): a mask leaves that as it is."""
    if not site.is_masked:
        return site.per_datum()
    events = base_law(site.law).log_prob(site.value)  # with entries of an event apart
    inside = tuple(range(len(site.batch_shape), events.dim()))
    return site.by_row(events.sum(inside) if inside else events)


def _is_angle(law: Any) -> bool:
    """Whether a law is one of angles, whose density has a period although torch says "real"."""
    law = base_law(law)
    while hasattr(law, "base_dist") or hasattr(law, "component_distribution"):
        law = base_law(getattr(law, "component_distribution", None) or law.base_dist)
    return isinstance(law, (dist.VonMises, dist.SineBivariateVonMises))


def _fixed(support: Any, axis: int, name: str) -> Any:
    """A copy of a constraint whose bounds are constants that broadcast over any number of rows."""
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return _fixed(support.base_constraint, axis, name)
    fixed = copy.copy(support)
    for attribute, bound in vars(support).items():
        if isinstance(bound, constraints.Constraint):
            setattr(fixed, attribute, _fixed(bound, axis, name))
        elif isinstance(bound, Tensor):
            row = bound.narrow(axis, 0, 1) if bound.dim() >= -axis else bound
            if bound.requires_grad or not bool((bound == row).all()):
                raise ValueError(
                    f"{name} has a support with bounds that depend on the row, on parameters or on "
                    "other latents, expected fixed bounds: draw it between 0 and 1 and scale it"
                )
            setattr(fixed, attribute, row.clone())
    return fixed
