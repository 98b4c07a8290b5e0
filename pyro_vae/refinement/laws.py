r"""The laws of a guide with free parameters for each datum: what a local refit moves.

A guide gives datum b the law q(z; f(x_b)) with f a network.  Here each parameter is moved off what
the network says by an offset of the datum's own, in coordinates without bounds,

.. math:: \theta_b = T\big(T^{-1}(f(x_b)) + s_b\, o_b\big),

so that o = 0 is the guide as it is, and every law of the family can be reached.  Locations move in
units of their law's own scale, s, and a factor L of a covariance is multiplied, L A(o): then a
step of one size means the same to a wide law and to a narrow one.  Where a site's law depends on
another site, its parameters still do: the offset is added to whatever the network says there.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta, Independent
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import (
    LowRankMultivariateNormal,
    MultivariateNormal,
    TransformedDistribution,
    constraints,
    transform_to,
)
from torch.distributions import transforms as plain

from pyro_vae.densities.look import looking
from pyro_vae.densities.sites import Site, Sites, latents_of
from pyro_vae.densities.traces import sites_of
from pyro_vae.program.calling import call_with
from pyro_vae.program.rows import Rows, num_rows

LOCATIONS = ("loc", "locs")
SCALES = ("scale", "scales")
INSTEAD = 'use method="psis" or "hmc"'


class Coordinate(NamedTuple):
    """One parameter of one site's law, as columns of the offsets.

    Attributes:
        site, name: whose, and which.
        shape: its offset for a datum.
        rows: the dimension of an offset that counts the data, from the left.
    """

    site: str
    name: str
    shape: tuple[int, ...]
    rows: int

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()


Change = Callable[[Any, str, Tensor], Tensor]  # (law, name, value) -> the new value


def coordinates_of(program: nn.Module, x: Rows) -> tuple[Coordinate, ...]:
    """What can be moved of a guide's laws: the parameters that training moves, site by site.

    A parameter that depends on nothing learnt, such as degrees of freedom that are an option, is
    the family's and stays.  Where a guide learns nothing at all, each is taken.

    Raises:
        ValueError: a site whose family cannot be refitted, and what to use.
    """
    sites = _at_leaves(program, x)
    movable = {n: s for n, s in latents_of(sites).items() if not s.is_point}
    if not movable:
        raise ValueError(
            "the guide has no latent with a density, so there is no family to refit: "
            'use method="hmc"'
        )
    found: list[tuple[Coordinate, bool]] = []
    for name, site in movable.items():
        if site.is_global:
            raise ValueError(
                f'latent site "{name}" is shared by all data, so there is no refit of it for each '
                "datum: fix it with pyro.poutine.condition"
            )
        if not site.has_rsample:
            raise ValueError(
                f'latent site "{name}" has the guide {site.family}, which is not reparameterized, '
                f'and a refit follows gradients of draws: use method="psis"'
            )
        found += _of_site(site, num_rows(x))
    learnt = [each for each, is_learnt in found if is_learnt]
    return tuple(learnt or [each for each, _ in found])


def _at_leaves(program: nn.Module, x: Rows) -> Sites:
    """The guide's sites with gradients in every parameter, frozen ones among them."""
    leaves = {
        name: p.detach().requires_grad_(p.is_floating_point())
        for name, p in program.named_parameters()
    }
    with torch.enable_grad(), looking(program):
        return call_with(program, leaves, lambda held: sites_of(held, "guide", x))


def _of_site(site: Site, rows: int) -> Iterator[tuple[Coordinate, bool]]:
    axis = len(site.batch_shape) + (site.axis or 0)
    found: list[tuple[Coordinate, bool]] = []

    def note(law: Any, name: str, value: Tensor) -> Tensor:
        shape = list(_offset_shape(law, name, value))
        if shape.pop(axis) != rows:
            raise ValueError(
                f'the {name} of latent site "{site.name}" has shape {tuple(value.shape)}, expected '
                f"one for each of {rows} rows: {INSTEAD}"
            )
        learnt = value.requires_grad or _is_moved(site.law)
        found.append((Coordinate(site.name, name, tuple(shape), axis), learnt))
        return value

    rebuilt(site.law, note, site.name)
    return iter(found)


def _is_moved(law: Any) -> bool:
    """Whether a law's transforms hold what is learnt: then its base stands for the whole family."""
    while law is not None:
        for transform in getattr(law, "transforms", []):
            held = vars(transform).values()
            if any(isinstance(t, Tensor) and t.requires_grad for t in held):
                return True
        law = getattr(law, "base_dist", None)
    return False


class Offsets(Messenger):
    """Moves the laws of a guide's sites while it runs.

    Args:
        coordinates: what is moved.
        offsets: (B, P), a column a number, in the coordinates' order.
    """

    def __init__(self, coordinates: tuple[Coordinate, ...], offsets: Tensor) -> None:
        super().__init__()
        self.by_site: dict[str, dict[str, Tensor]] = {}
        columns = offsets.split([each.size for each in coordinates], dim=-1)
        for each, column in zip(coordinates, columns, strict=True):
            own = column.reshape(len(offsets), *each.shape).movedim(0, each.rows)
            self.by_site.setdefault(each.site, {})[each.name] = own

    def _pyro_sample(self, msg) -> None:
        if msg["is_observed"] or msg["name"] not in self.by_site:
            return
        own = self.by_site[msg["name"]]

        def change(law: Any, name: str, value: Tensor) -> Tensor:
            return value if name not in own else _moved(law, name, value, own)

        msg["fn"] = rebuilt(msg["fn"], change, msg["name"])


# --- laws ---------------------------------------------------------------------------------------


def rebuilt(law: Any, change: Change, site: str) -> Any:
    """The same law with each of its parameters changed, below all wrappers.

    Raises:
        ValueError: a flow, or a law whose parameters cannot be taken apart.
    """
    if isinstance(law, Independent):
        return rebuilt(law.base_dist, change, site).to_event(law.reinterpreted_batch_ndims)
    if isinstance(law, MaskedDistribution):
        return rebuilt(law.base_dist, change, site).mask(law._mask)
    if isinstance(law, ExpandedDistribution | Delta) or not _has_names(law):
        if not isinstance(law, TransformedDistribution) or not _is_plain(law):
            raise ValueError(
                f'latent site "{site}" has the guide {type(law).__name__}, which cannot be '
                "refitted for each datum, expected a law of parameters, such as a normal, or an "
                f"elementwise function of one: {INSTEAD}"
            )
        moved = copy.copy(law)
        moved.base_dist = rebuilt(law.base_dist, change, site)
        return moved
    values = {name: change(law, name, _whole(law, name)) for name in _names(law)}
    try:
        return type(law)(**values, validate_args=False)
    except TypeError:  # whose constructor wants a number that is no tensor, such as Erlang's
        if not set(values) <= set(vars(law)):
            raise
    moved = copy.copy(law)
    vars(moved).update(values)
    return moved


def _names(law: Any) -> list[str]:
    """The parameters that a law of this class is made of again."""
    if isinstance(law, MultivariateNormal):
        return ["loc", "scale_tril"]
    known = type(law).arg_constraints
    if not isinstance(known, dict):
        return []
    taken = inspect.signature(type(law).__init__).parameters
    names = list(known) if "parameters" in taken else [n for n in taken if n in known]
    if "probs" in names and "logits" in names:
        names.remove("probs")
    # Of several ways to say the same, those that the law holds.
    return names if isinstance(law, LowRankMultivariateNormal) else [
        n for n in names if isinstance(getattr(law, n, None), Tensor)
    ]  # fmt: skip


def _has_names(law: Any) -> bool:
    if not _names(law):
        return False
    taken = inspect.signature(type(law).__init__).parameters.values()
    own = [p.name for p in taken if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return set(own) <= {"self", *_names(law)}


def _is_plain(law: Any) -> bool:
    """Whether a law is a fixed elementwise function, or a stick-breaking one, of its base."""
    known = (
        plain.ExpTransform, plain.SigmoidTransform, plain.AffineTransform, plain.TanhTransform,
        plain.SoftplusTransform, plain.PowerTransform, plain.StickBreakingTransform,
        plain.SoftmaxTransform, plain.ReshapeTransform,
    )  # fmt: skip
    todo = list(law.transforms)
    while todo:
        each = todo.pop()
        if isinstance(each, plain.ComposeTransform):
            todo += each.parts
        elif isinstance(each, plain.IndependentTransform):
            todo.append(each.base_transform)
        elif not isinstance(each, known):
            return False
    return True


def _constraint(law: Any, name: str) -> Any:
    return type(law).arg_constraints[name]


def _whole(law: Any, name: str) -> Tensor:
    """A parameter with all batch dimensions of its law."""
    value = getattr(law, name)
    batch = law.batch_shape
    if value.shape[: len(batch)] == batch:
        return value
    inside = 2 if name == "scale_tril" else _constraint(law, name).event_dim
    return value.expand(*batch, *value.shape[value.dim() - inside :])


def _offset_shape(law: Any, name: str, value: Tensor) -> torch.Size:
    if _is_real(law, name) or _is_positive(law, name) or name == "scale_tril":
        return value.shape
    try:
        return transform_to(_constraint(law, name)).inv(value.detach()).shape
    except NotImplementedError:
        raise ValueError(
            f"the {name} of {type(law).__name__} has bounds that move, expected a parameter that "
            f"can be moved by itself: {INSTEAD}"
        ) from None


def _innermost(law: Any, name: str) -> Any:
    constraint = _constraint(law, name)
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def _is_real(law: Any, name: str) -> bool:
    return _innermost(law, name) is constraints.real


def _is_positive(law: Any, name: str) -> bool:
    inner = _innermost(law, name)
    return isinstance(inner, constraints.greater_than) and inner.lower_bound == 0


def _moved(law: Any, name: str, value: Tensor, offsets: dict[str, Tensor]) -> Tensor:
    """A parameter off its value; exactly that at an offset of zero.

    Args:
        law: as the guide gives it.
        name, value: of the parameter.
        offsets: of this and the other parameters of the law.
    """
    offset = offsets[name]
    if isinstance(law, MultivariateNormal):
        factor = law._unbroadcasted_scale_tril
        if name == "loc":
            wider = _wider(offsets.get("scale_tril"), factored=True)
            return value + (factor @ (wider * offset).unsqueeze(-1)).squeeze(-1)
        return value @ (offset.tril(-1) + offset.diagonal(dim1=-2, dim2=-1).exp().diag_embed())
    if _is_real(law, name):
        return value + _unit(law, name, offsets) * offset
    if _is_positive(law, name):
        return value * offset.exp()
    transform = transform_to(_constraint(law, name))
    return transform(transform.inv(value) + offset)


def _unit(law: Any, name: str, offsets: dict[str, Tensor]) -> Tensor | float:
    """What a location moves by at an offset of one."""
    if name not in LOCATIONS:
        return 1.0
    if isinstance(law, LowRankMultivariateNormal):
        return law.stddev
    for scale in SCALES:
        if isinstance(unit := getattr(law, scale, None), Tensor):
            return unit * _wider(offsets.get(scale))
    return 1.0


def _wider(offset: Tensor | None, factored: bool = False) -> Tensor | float:
    """By how much a law has become wider than it was: its location then moves as much faster.

    A constant to gradients.  Where it has become narrower it keeps its step, because what was far
    away then is no nearer now.
    """
    if offset is None:
        return 1.0
    log = offset.diagonal(dim1=-2, dim2=-1) if factored else offset
    return log.detach().clamp_min(0.0).exp()
