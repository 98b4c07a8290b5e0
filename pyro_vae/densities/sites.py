"""A site: one ``pyro.sample`` statement, its density, its place in the plates, its KL term.

A site inside the plate of the data belongs to a datum; one outside it is *global*: all data share
it.  :mod:`~pyro_vae.densities.traces` makes sites out of what Pyro wrote down, and decides there
which plate is the data's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta, Independent, Unit
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.distributions.gaps import without_gaps


class Plate(NamedTuple):
    """A plate as a site sees it.

    Attributes:
        name: as in ``pyro.plate(name, ...)``.
        dim: the batch dimension that counts its members, from the right; None in a ``for`` loop.
        size: how many of its members are here.
        total: how many it has in all.
        sized: whether a size was given to it; without one Pyro expands nothing.
    """

    name: str
    dim: int | None
    size: int
    total: int
    sized: bool = True

    @property
    def scale(self) -> float:
        """What it multiplies the log density of its sites by."""
        return self.total / self.size


@dataclass(frozen=True, eq=False, slots=True)
class Site:
    """One ``pyro.sample`` statement as a run of a program met it.

    Attributes:
        name: as in ``pyro.sample(name, ...)``.
        law: the distribution.
        value: what was drawn or observed.
        observed: whether the value was given; factors and deterministic sites count as such.
        mask: of ``poutine.mask``; the distribution may have another.
        scale: what plates and ``poutine.scale`` multiply the log density by.
        plate: the plate of the data; None for a global site.
        plates: all plates, the data's among them.
        is_deterministic: of ``pyro.deterministic``: a name for a number, without a density.
        is_auxiliary: marked ``infer={"is_auxiliary": True}``.
        was_observed: whether ``given`` was taken from it, so that the value is a draw.
        given: what it observed before.
        args, kwargs: further arguments of the distribution.
        enumeration: of ``infer={"enumerate": ...}``, "parallel" or "sequential".
        event_dims: names of the dimensions of an event, ``infer={"event_dims": [...]}``.
    """

    name: str
    law: Any
    value: Any
    observed: bool
    mask: Tensor | bool | None = None
    scale: float | Tensor = 1.0
    plate: Plate | None = None
    plates: tuple[Plate, ...] = ()
    is_deterministic: bool = False
    is_auxiliary: bool = False
    was_observed: bool = False
    given: Any = None
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    enumeration: str | None = None
    event_dims: tuple[str, ...] = ()

    # --- where it is, and what shape it has -----------------------------------------------------

    @property
    def factor(self) -> float:
        """What its log density is multiplied by besides the scales of its plates.

        Raises:
            ValueError: where that is no single number.
        """
        if isinstance(self.scale, Tensor) and self.scale.numel() != 1:
            raise ValueError(
                f'the log density of site "{self.name}" is scaled by a tensor of shape '
                f"{tuple(self.scale.shape)}, expected a number: write poutine.scale(scale=0.5), or "
                "leave entries out with poutine.mask"
            )
        factor = float(self.scale) / math.prod(plate.scale for plate in self.plates)
        return 1.0 if abs(factor - 1.0) < 1e-6 else factor

    @property
    def is_global(self) -> bool:
        """Whether all data share it."""
        return self.plate is None

    @property
    def axis(self) -> int | None:
        """The batch dimension that counts the data, from the right; None for a global site."""
        return None if self.plate is None else self.plate.dim

    @property
    def batch_shape(self) -> torch.Size:
        return self.law.batch_shape

    @property
    def event_shape(self) -> torch.Size:
        return self.law.event_shape

    def rows_first(self, value: Tensor) -> Tensor:
        """A value of this site with its rows in front, where they are one dimension of several."""
        if self.axis is None:
            return value
        return value.movedim(value.dim() - len(self.event_shape) + self.axis, 0)

    # --- what it is -----------------------------------------------------------------------------

    @property
    def base(self) -> Any:
        """The distribution without the wrappers that only rearrange its dimensions."""
        return base_law(self.law)

    @property
    def family(self) -> str:
        """The name of the distribution."""
        return type(without_gaps(self.base)).__name__

    @property
    def is_marked(self) -> bool:
        """Whether it is summed out, if the model alone has it."""
        return self.enumeration == "parallel"

    @property
    def is_factor(self) -> bool:
        """Whether it is a ``pyro.factor``."""
        return isinstance(self.law, Unit)

    @property
    def observes_nothing(self) -> bool:
        """Whether it is a ``pyro.factor`` or a ``pyro.deterministic``."""
        return self.observed and isinstance(self.base, (Unit, Delta))

    @property
    def is_point(self) -> bool:
        """Whether it is a latent at one value, a Delta."""
        return not self.observed and isinstance(self.base, Delta)

    @property
    def has_rsample(self) -> bool:
        """Whether gradients flow through its draws."""
        return bool(getattr(self.law, "has_rsample", False))

    @property
    def is_masked(self) -> bool:
        """Whether a mask of any kind leaves values out."""
        return self.mask is not None or bool(law_masks(self.law))

    @property
    def law_is_masked(self) -> bool:
        """Whether the distribution has a mask of its own."""
        return bool(law_masks(self.law))

    def whole_mask(self) -> Tensor:
        """Which numbers of an event count, by every mask there is, broadcastable to the value."""
        masks = [torch.as_tensor(True if self.mask is None else self.mask).bool()]
        law: Any = self.law
        while law is not None:
            inner = getattr(law, "base_dist", None)
            if isinstance(law, MaskedDistribution):
                masks.append(torch.as_tensor(law._mask).bool())
            elif inner is None or isinstance(law, Independent):
                # A mask of this level's events holds for all numbers of each.
                # (By shapes: the base of a law of Pyro may be one of torch, without `event_dim`.)
                depth = len(law.event_shape) - (0 if inner is None else len(inner.event_shape))
                masks = [mask[(..., *[None] * depth)] for mask in masks]
            law = inner
        whole = masks[0]
        for mask in masks[1:]:
            whole = whole & mask
        return whole

    def mean(self, *, look: bool = True) -> Tensor | None:
        """Its mean, None where it has none, or where a ``look`` at it shows a nan."""
        try:
            mean = self.law.mean
        except NotImplementedError:
            return None
        return None if look and mean.isnan().any() else mean  # a Categorical's is nan

    def without_inverse(self) -> str | None:
        """The transform of a flow that leads no given value back, by name; None where all do."""
        value = self.value.detach().clone()  # transforms know their last result, as an object
        for transform in reversed(getattr(self.base, "transforms", [])):
            try:
                value = transform.inv(value)
            except (KeyError, NotImplementedError):
                return type(transform).__name__
        return None

    # --- densities ------------------------------------------------------------------------------

    def density(self) -> Tensor:
        """The log density, masked but unscaled, one entry an event.

        Raises:
            ValueError: at a value that a flow without an inverse did not draw itself.
        """
        try:
            log_prob = self.law.log_prob(self.value, *self.args, **self.kwargs)
        except (KeyError, NotImplementedError) as error:
            transform = self.without_inverse()
            if transform is None:
                raise
            raise ValueError(
                f'site "{self.name}": {transform} has no inverse, so its density is known only at '
                "the draw that it has just made, and is asked for at another value: train such a "
                "guide by AEVB(); WakeSleep() and priors need a transform with an inverse, such as "
                "pyro.distributions.transforms.affine_coupling"
            ) from error
        return scale_and_mask(log_prob, 1.0, self.mask)

    def per_datum(self) -> Tensor:
        """The log density summed over all plates but the data's: (B,), of a global site ()."""
        return self.by_row(self.density())

    def by_row(self, events: Tensor) -> Tensor:
        """Sum of one number an event over all plates but the data's: (B,), of a global site ().

        Raises:
            ValueError: where the plate of the data is a ``for`` loop.
        """
        if self.plate is not None and self.plate.dim is None:
            raise ValueError(
                f'site "{self.name}" is in a `for` loop over pyro.plate("{self.plate.name}", ...), '
                "expected all rows at once, because the rows of a loop are sites of their own: "
                f'write `with pyro.plate("{self.plate.name}", len(x)):`'
            )
        return by_row(events, self.axis)


Sites = dict[str, Site]  # by name, in the order of the program


def by_row(events: Tensor, axis: int | None) -> Tensor:
    """Sum over all batch dimensions but that of the rows: (B,); without one ()."""
    if axis is None:
        return events.sum()
    rows = events.movedim(axis, -1)
    return rows.sum(tuple(range(rows.dim() - 1))) if rows.dim() > 1 else rows


def latents_of(sites: Sites) -> Sites:
    """The sites that are drawn and not given; in a dream, those in place of data among them."""
    return {
        name: site
        for name, site in sites.items()
        if not (site.observed or site.is_deterministic or site.is_factor)
    }


def unmarked(sites: Sites) -> Sites:
    """The sites without the latents that are marked to be summed out."""
    return {name: site for name, site in sites.items() if site.observed or not site.is_marked}


def values_of(sites: Sites) -> dict[str, Tensor]:
    """The values of the latents by site."""
    return {name: site.value for name, site in latents_of(sites).items()}


def has_finite_support(law: Any) -> bool:
    """Whether all values that a law gives a probability can be listed."""
    return bool(getattr(law, "has_enumerate_support", False))


def base_law(law: Any) -> Any:
    """A distribution without the wrappers that only rearrange its dimensions."""
    while isinstance(law, (Independent, MaskedDistribution, ExpandedDistribution)):
        law = law.base_dist
    return law


def law_masks(law: Any) -> list[Any]:
    """The masks of ``law.mask(...)`` anywhere in a nest of distributions, the outermost first."""
    masks = []
    while law is not None:
        if isinstance(law, MaskedDistribution):
            masks.append(law._mask)
        law = getattr(law, "base_dist", None)
    return masks


def same_mask(a: Site, b: Site) -> bool:
    """Whether two sites leave out the same numbers."""
    try:
        return bool((a.whole_mask() == b.whole_mask()).all())
    except RuntimeError:  # of shapes that do not go together
        return False
