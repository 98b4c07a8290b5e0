"""One site of a trace: its density, its place in the plates, its KL term."""

from __future__ import annotations

from typing import Any

from pyro.distributions import Delta, Independent, Unit
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

Site = dict[str, Any]


def mean_of(fn: Any, *, look: bool = True) -> Tensor | None:
    """A distribution's mean, None where it has none, or where a ``look`` at it shows a nan."""
    try:
        mean = fn.mean
    except NotImplementedError:
        return None
    return None if look and mean.isnan().any() else mean  # a Categorical's is nan


def data_frame(site: Site) -> Any:
    """The frame of ``pyro.plate("data", ...)`` that a site lives in, or None."""
    return next((f for f in site["cond_indep_stack"] if f.name == "data"), None)


def log_density(site: Site) -> Tensor:
    """The site's log density, masked but unscaled, one entry an event.

    Raises:
        ValueError: at a value that a flow without an inverse did not draw itself.
    """
    fn, value = site["fn"], site["value"]
    try:
        log_prob = fn.log_prob(value, *site["args"], **site["kwargs"])
    except (KeyError, NotImplementedError) as error:
        transform = without_inverse(fn, value)
        if transform is None:
            raise
        raise ValueError(
            f'site "{site["name"]}": {transform} has no inverse, so its density is known only at '
            "the draw that it has just made, and is asked for at another value: train such a guide "
            "by AEVB(); WakeSleep() and priors need a transform with an inverse, such as "
            "pyro.distributions.transforms.affine_coupling"
        ) from error
    return scale_and_mask(log_prob, 1.0, site["mask"])


def without_inverse(fn: Any, value: Tensor) -> str | None:
    """The transform of a flow that leads no given value back, by name; None where all do."""
    value = value.detach().clone()  # transforms know their last result again, as an object
    for transform in reversed(getattr(base_law(fn), "transforms", [])):
        try:
            value = transform.inv(value)
        except (KeyError, NotImplementedError):
            return type(transform).__name__
    return None


def per_datum(site: Site, events: Tensor) -> Tensor:
    """Sum over all plates but the data's: (..., B, ...) to (B,); a global site to ()."""
    frame = data_frame(site)
    if frame is None:
        return events.sum()
    rows = events.movedim(frame.dim, -1)
    return rows.sum(tuple(range(rows.dim() - 1))) if rows.dim() > 1 else rows


def base_law(fn: Any) -> Any:
    """A distribution without the wrappers that only rearrange its dimensions."""
    while isinstance(fn, (Independent, MaskedDistribution, ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def closed_kl(guide: dict[str, Site], model: dict[str, Site]) -> dict[str, Tensor | None]:
    """KL(q || p) of each latent where a closed form is registered: (B,), of a global one ()."""
    shared = [
        name
        for name, site in model.items()  # without what pyro.deterministic names in both
        if name in guide and not (site["is_observed"] or guide[name]["is_observed"])
    ]
    # (torch's KL from a Delta forgets its log_density, so that is left to sampling.)
    # If the guide draws its sites in another order, the prior of one may depend on a site that
    # the guide draws after it; then E_q of the closed form is not the KL term of the bound.
    mean_field = shared == [name for name in guide if name in shared]
    result: dict[str, Tensor | None] = {}
    for name in shared:
        q, p = guide[name], model[name]
        result[name] = None
        if mean_field and not isinstance(base_law(q["fn"]), Delta):
            try:
                kl = kl_divergence(q["fn"], p["fn"])
            except NotImplementedError:
                continue
            if not isinstance(kl, Tensor) or kl.shape != q["fn"].batch_shape:
                continue
            result[name] = per_datum(q, scale_and_mask(kl, 1.0, q["mask"]))
    return result


def one_scale(guide: dict[str, Site], model: dict[str, Site]) -> float:
    """N / B, which all sites of a datum have; those outside the plate have 1."""
    first = None
    for name, site in [*model.items(), *guide.items()]:
        scale = float(site["scale"])
        if data_frame(site) is not None:
            first = first or (name, scale)
        expected = 1.0 if data_frame(site) is None or first is None else first[1]
        if scale != expected:
            like = f'{expected:g} like "{first[0]}"' if first and data_frame(site) else "1"
            raise ValueError(
                f'the log density of site "{name}" is scaled by {scale:g}, expected {like}: the '
                "rows' plate, in model and guide, is the only scale that a program has; a factor "
                "on one term, such as a warm-up, belongs in an objective"
            )
    return first[1] if first else 1.0


def is_deterministic(site: Site) -> bool:
    """Whether a site is a ``pyro.deterministic``: a name for a number, without a density."""
    return bool(site["infer"].get("_deterministic"))


def observes_nothing(site: Site) -> bool:
    """Whether a site is a ``pyro.factor`` or ``pyro.deterministic``."""
    return isinstance(base_law(site["fn"]), (Unit, Delta)) and site["is_observed"]
