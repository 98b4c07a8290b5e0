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
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.densities.sites import Site, base_law, data_frame, mean_of
from pyro_vae.graphs.lifting import particles_by_vmap
from pyro_vae.program.rows import Rows


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
