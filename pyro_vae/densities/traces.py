"""Running a program under handlers, and reading what it leaves: the one reader of Pyro's messages.

Nothing else in the package looks into a Pyro trace: :func:`sites_of` runs a function and answers
with :class:`~pyro_vae.densities.sites.Site` objects.  Which plate counts the data and which site
observes them is decided in :func:`_plate_of_rows` and :func:`observed_site`, and nowhere else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.densities.sites import Plate, Site, Sites, values_of
from pyro_vae.graphs.lifting import particles_by_vmap
from pyro_vae.program.rows import Rows


def _plate_of_rows(stack: Any) -> Any:
    """Pyro's frame of the plate that counts the data, or None: whose name is "data"."""
    return next((frame for frame in stack if frame.name == "data"), None)


def observed_site(program: Any) -> str:
    """The name of the site that observes x."""
    return getattr(program, "observed", "x")


def _site(message: Any) -> Site:
    """What Pyro wrote down of one ``pyro.sample``."""
    stack, infer = message["cond_indep_stack"], message["infer"] or {}
    plates = tuple(Plate(f.name, f.dim, f.size, f.full_size or f.size) for f in stack)
    rows = _plate_of_rows(stack)
    return Site(
        message["name"],
        message["fn"],
        message["value"],
        message["is_observed"],
        message["mask"],
        message["scale"],
        None if rows is None else plates[stack.index(rows)],
        plates,
        bool(infer.get("_deterministic")),
        bool(infer.get("is_auxiliary")),
        bool(infer.get("was_observed")),
        infer.get("obs"),
        message["args"],
        message["kwargs"],
    )


# --- handlers -------------------------------------------------------------------------------------


class RowsAreTheBatch(Messenger):
    """Answers a subsampled plate with 0..B-1: which rows are in ``x`` is the caller's business.

    Without it Pyro draws a permutation of all N at each call, only to count it.
    """

    def _pyro_sample(self, msg) -> None:
        if site_is_subsample(msg) and msg["value"] is None:
            size = msg["fn"].subsample_size
            if size is not None and size != msg["fn"].size:  # K particles of all N rows are more
                msg["value"] = torch.arange(size, device=msg["fn"].device)


class At(Messenger):
    """Gives latents the values that it is told; they stay latents."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


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


class NoMean(ValueError):
    """A guide without a mean.

    Attributes:
        law: which, in words.
    """

    def __init__(self, law: str, advice: str) -> None:
        super().__init__(f"{law}, has no mean: {advice}")
        self.law = law


class AtTheMean(Messenger):
    """Sets each latent to its distribution's mean, so that later sites see it."""

    def __init__(self, *, look: bool = True) -> None:
        super().__init__()
        self.look = look

    def _pyro_sample(self, msg) -> None:
        if site_is_subsample(msg) or msg["is_observed"] or msg["done"]:
            return
        site = _site(msg)
        mean = site.mean(look=self.look)
        if mean is None:
            raise NoMean(
                f'the guide of "{site.name}", {site.family}',
                "ask for draws, num_draws=100, and average what you need, or train such a guide "
                "by another objective than Autoencoder()",
            )
        msg["value"], msg["done"] = mean, True


class DataScale(Messenger):
    """Listens for the plate's scale N / B while a program runs."""

    value: float = 1.0
    _heard = False

    def _pyro_post_sample(self, msg) -> None:
        if self._heard or site_is_subsample(msg):
            return
        if _plate_of_rows(msg["cond_indep_stack"]) is not None:
            self.value, self._heard = float(msg["scale"]), True

    def _pyro_post_data_scale(self, msg) -> None:
        self.value, self._heard = msg["value"], True


@effectful(type="data_scale")
def tell_scale(scale: float) -> float:
    """Tell listeners what the sites of a graph cannot, because they are gone."""
    return scale


# --- runs -----------------------------------------------------------------------------------------


def sites_of(
    function: Callable[[Rows], Any], x: Rows, *handlers: Messenger, into: Sites | None = None
) -> Sites:
    """The sites of ``function(x)`` on the rows of a batch, under further handlers.

    Args:
        function: a program's ``model`` or ``guide``.
        x: the rows.
        handlers: of Pyro's kind, the first outermost.
        into: takes the sites, also those that were met before the function raised.
    """
    found: Sites = {} if into is None else into
    trace = poutine.trace()
    try:
        _run(function, x, *handlers, trace)
    finally:
        for name, message in trace.trace.nodes.items():
            if message["type"] == "sample" and not site_is_subsample(message):
                found[name] = _site(message)
    return found


def sites_of_both(program: Any, x: Rows, *, reparameterize: bool = True) -> tuple[Sites, Sites]:
    """Run the guide, then the model at its latents: the sites of guide and model."""
    guide = sites_of(program.guide, x, *([] if reparameterize else [Detached()]))
    return guide, sites_of(program.model, x, At(values_of(guide)))


def dreamt_sites(program: Any, x: Rows, at: Mapping[str, Tensor]) -> Sites:
    """The sites of the model, which draws what it observes; at these latents, where given."""
    return sites_of(poutine.uncondition(program.model), x, At(at))


def pyro_traces(program: Any, x: Rows) -> tuple[poutine.Trace, poutine.Trace]:
    """Traces of guide and model in Pyro's own form, which Pyro's ELBOs ask for."""
    guide, model = poutine.trace(), poutine.trace()
    _run(program.guide, x, guide)
    _run(poutine.replay(program.model, trace=guide.trace), x, model)
    return guide.trace, model.trace


def _run(function: Callable[[Rows], Any], x: Rows, *handlers: Any) -> None:
    """(Pyro's own ``get_trace`` adds a table of all shapes to whatever the function raises.)"""
    *others, tracer = handlers
    with contextlib.ExitStack() as stack:
        for handler in (*others, RowsAreTheBatch(), tracer):
            stack.enter_context(handler)
        function(x)
