"""Running a program under handlers, and reading the traces that it leaves.

Nothing else in the package looks into a Pyro trace.  A *site* is one ``pyro.sample`` statement as
Pyro wrote it down; a site inside ``pyro.plate("data", ...)`` belongs to a datum, one outside it is
global.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta, Independent, Pareto, Uniform, Unit
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.lifting import particles_by_vmap
from pyro_vae.program import Rows

Site = dict[str, Any]


class RowsAreTheBatch(Messenger):
    """Answers a subsampled plate with 0..B-1: which rows are in ``x`` is the caller's business.

    Without it Pyro draws a permutation of all N at each call, only to count it.
    """

    def _pyro_sample(self, msg) -> None:
        if site_is_subsample(msg) and msg["value"] is None:
            size = msg["fn"].subsample_size
            if size is not None and size != msg["fn"].size:  # K particles of all N rows are more
                msg["value"] = torch.arange(size, device=msg["fn"].device)


class Detached(Messenger):
    """Draws carry no gradient: what Pyro's ``sample`` without ``rsample`` would give.

    One that carries none stays the object it is: flows know their own last draw again, and some
    have no other way to score it.  In a graph that will be differentiated later nothing carries
    any yet, and what is not recorded there would be missing.
    """

    def _pyro_post_sample(self, msg) -> None:
        value = msg["value"]
        if msg["is_observed"] or not isinstance(value, Tensor):
            return
        if value.requires_grad or (torch.is_grad_enabled() and particles_by_vmap()):
            msg["value"] = value.detach()


def mean_of(fn: Any, *, look: bool = True) -> Tensor | None:
    """A distribution's mean, None where it has none, or where a ``look`` at it shows a nan."""
    try:
        mean = fn.mean
    except NotImplementedError:
        return None
    return None if look and mean.isnan().any() else mean  # a Categorical's is nan


class AtTheMean(Messenger):
    """Sets each latent to its distribution's mean, so that later sites see it."""

    def __init__(self, *, look: bool = True) -> None:
        super().__init__()
        self.look = look

    def _pyro_sample(self, msg) -> None:
        if site_is_subsample(msg) or msg["is_observed"] or msg["done"]:
            return
        mean = mean_of(msg["fn"], look=self.look)
        if mean is None:
            raise ValueError(
                f'the guide of "{msg["name"]}", {type(base_law(msg["fn"])).__name__}, has no mean: '
                "ask for draws, num_draws=100, and average what you need, or train such a guide "
                "by another objective than Autoencoder()"
            )
        msg["value"], msg["done"] = mean, True


class DataScale(Messenger):
    """Listens for the plate's scale N / B while a program runs."""

    value: float = 1.0
    _heard = False

    def _pyro_post_sample(self, msg) -> None:
        if not self._heard and data_frame(msg) is not None and not site_is_subsample(msg):
            self.value, self._heard = float(msg["scale"]), True

    def _pyro_post_data_scale(self, msg) -> None:
        self.value, self._heard = msg["value"], True


@effectful(type="data_scale")
def tell_scale(scale: float) -> float:
    """Tell listeners what the sites of a graph cannot, because they are gone."""
    return scale


def data_frame(site: Site) -> Any:
    """The frame of ``pyro.plate("data", ...)`` that a site lives in, or None."""
    return next((f for f in site["cond_indep_stack"] if f.name == "data"), None)


def sites_of(trace: poutine.Trace) -> dict[str, Site]:
    """The sample sites of a trace, without the plates' own."""
    return {
        name: site  # type: ignore[misc]  # Pyro's Message is a TypedDict
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def trace_program(
    program: Any, x: Rows, *, reparameterize: bool = True
) -> tuple[poutine.Trace, poutine.Trace]:
    """Run the guide, then the model at its latents; returns both traces (guide, model)."""
    guide = trace_of(program.guide, x, *([] if reparameterize else [Detached()]))
    return guide, trace_of(poutine.replay(program.model, trace=guide), x)


def trace_of(function: Callable[[Rows], Any], x: Rows, *handlers: Messenger) -> poutine.Trace:
    """The trace of ``function(x)`` on the rows of a batch, under further handlers.

    (Pyro's own ``get_trace`` adds a table of all shapes to whatever the function raises.)
    """
    tracer = poutine.trace()
    with contextlib.ExitStack() as stack:
        for handler in (*handlers, RowsAreTheBatch(), tracer):
            stack.enter_context(handler)
        function(x)
    return tracer.trace


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


def require_rows(guide: dict[str, Site], model: dict[str, Site]) -> None:
    """What makes a number per datum wrong without any error: ``pv.check`` says more."""
    for name, site in model.items():
        latent, inside = not site["is_observed"], data_frame(site) is not None
        if latent and name not in guide:
            raise ValueError(
                f'latent site "{name}" is in the model and not in the guide, so its density would '
                "be missing from log q: sample it in the guide as well"
            )
        if latent and (data_frame(guide[name]) is not None) != inside:
            where = "model" if inside else "guide"
            raise ValueError(
                f'latent site "{name}" is in pyro.plate("data", ...) in the {where} alone: indent '
                "it under the plate in both, or in neither if all data share it"
            )
        has_rows = bool(site["fn"].batch_shape) or not latent
        if not inside and has_rows and not observes_nothing(site):
            raise ValueError(
                f'site "{name}" is outside pyro.plate("data", ...), so it has no density per '
                'datum: write `with pyro.plate("data", len(x)):` around the sites of a datum'
            )
    for name in without_counterpart(guide, model):
        raise ValueError(
            f'latent site "{name}" is in the guide and not in the model, so its density would be '
            "missing from log p(x, z) and the bound would exceed log p(x): add it to the model; "
            'infer={"is_auxiliary": True} is for a guide whose other latents are all '
            "pyro.distributions.Delta at a function of it, with the log_density of that change"
        )


def without_counterpart(guide: dict[str, Site], model: dict[str, Site]) -> list[str]:
    """The guide's latents whose density would be in log q and in no term of log p.

    Their entropy would raise the bound above log p(x), by as much as one likes.  An auxiliary one
    is harmless where the model's latents are points in the guide: functions of it whose
    ``log_density`` is that of the change of variables, as an AutoGuide writes them.  Latents of a
    datum and global ones are told apart.
    """
    found = []
    for name, site in guide.items():
        if site["is_observed"] or name in model:
            continue
        local = data_frame(site) is not None
        drawn = [
            base_law(guide[n]["fn"])
            for n, s in model.items()
            if not s["is_observed"] and n in guide and (data_frame(s) is not None) == local
        ]
        points = bool(drawn) and all(isinstance(law, Delta) for law in drawn)
        if not (points and site["infer"].get("is_auxiliary")):
            found.append(name)
    return found


def is_deterministic(site: Site) -> bool:
    """Whether a site is a ``pyro.deterministic``: a name for a number, without a density."""
    return bool(site["infer"].get("_deterministic"))


def observes_nothing(site: Site) -> bool:
    """Whether a site is a ``pyro.factor`` or ``pyro.deterministic``."""
    return isinstance(base_law(site["fn"]), (Unit, Delta)) and site["is_observed"]


def require_score(guide: dict[str, Site]) -> None:
    """What has no density, or one whose support moves, has no score that could train it."""
    for name, site in guide.items():
        law = base_law(site["fn"])
        if not site["is_observed"] and isinstance(law, (Delta, Uniform)):
            raise ValueError(
                f'latent site "{name}" has the guide {type(law).__name__}, whose log density says '
                "nothing about where it should move, so without reparameterization its gradient "
                'would silently be zero: use AEVB("A"), or a guide with a density everywhere'
            )


def require_fixed_support(guide: dict[str, Site]) -> None:
    """Where the edges of a density move with parameters, its score is not zero on average."""
    for name, site in guide.items():
        law = base_law(site["fn"])
        if not site["is_observed"] and isinstance(law, (Uniform, Pareto)):
            raise ValueError(
                f'latent site "{name}" has the guide {type(law).__name__}, whose support moves '
                "with its parameters, so leaving the score of q out would leave out its entropy "
                "too: use AEVB() or IWAE()"
            )


def require_rsample(guide: dict[str, Site]) -> None:
    for name, site in guide.items():
        if not site["is_observed"] and not getattr(site["fn"], "has_rsample", False):
            raise ValueError(
                f'latent site "{name}" has the guide {type(site["fn"]).__name__}, which is not '
                "reparameterized, so its gradient would silently be zero: use a distribution "
                "with rsample, or an objective that does not reparameterize: ScoreFunction() for "
                "the same bound, ReweightedWakeSleep() or WakeSleep()"
            )
