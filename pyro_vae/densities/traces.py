"""Running a program under handlers, and reading what it leaves: the one reader of Pyro's messages.

Nothing else in the package looks into a Pyro trace: :func:`sites_of` runs a function and answers
with :class:`~pyro_vae.densities.sites.Site` objects.  Which plate counts the data is decided in
:mod:`~pyro_vae.densities.plates`, which sites observe them in
:mod:`~pyro_vae.densities.observations`, and nowhere else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.densities.plates import ANY_SIZE, Role, rows_plate
from pyro_vae.densities.scales import scale_of
from pyro_vae.densities.sites import Plate, Site, Sites, values_of
from pyro_vae.graphs.lifting import particles_by_vmap
from pyro_vae.program.calling import plate_of_other_size
from pyro_vae.program.rows import Rows, num_rows


def _site(message: Any, name_of_rows: str | None = None, rows: int = 0) -> Site:
    """What Pyro wrote down of one ``pyro.sample``."""
    stack, infer = message["cond_indep_stack"], message["infer"] or {}
    plates = tuple(_plate(frame, rows) for frame in stack)
    return Site(
        message["name"],
        message["fn"],
        message["value"],
        message["is_observed"],
        message["mask"],
        message["scale"],
        next((plate for plate in plates if plate.name == name_of_rows), None),
        plates,
        bool(infer.get("_deterministic")),
        bool(infer.get("is_auxiliary")),
        bool(infer.get("was_observed")),
        infer.get("obs"),
        message["args"],
        message["kwargs"],
        infer.get("enumerate"),
        tuple(infer.get("event_dims", ())),
    )


def _plate(frame: Any, rows: int) -> Plate:
    if frame.size == ANY_SIZE:  # as many as there are
        return Plate(frame.name, frame.dim, rows, rows, sized=False)
    return Plate(frame.name, frame.dim, frame.size, frame.full_size or frame.size)


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


class Dreaming(Messenger):
    """Draws what is observed.

    (Pyro's own ``uncondition`` draws deterministic sites too, a plate's size times as often.)
    """

    def _pyro_sample(self, msg) -> None:
        infer = msg["infer"] or {}
        names_a_number = infer.get("_deterministic") or isinstance(msg["fn"], Unit)
        if site_is_subsample(msg) or not msg["is_observed"] or names_a_number:
            return
        msg["infer"] = {**infer, "was_observed": True, "obs": msg["value"]}
        msg["is_observed"], msg["value"], msg["done"] = False, None, False


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
    """Listens for the rows' scale N / B while a program runs.

    Args:
        plate: the name of the rows' plate, where Pyro runs the program by itself; else the runs of
            this module tell what they found.

    Attributes:
        value: N / B.
        weighed: a site whose term ``poutine.scale`` weighs besides, by name.
    """

    value: float = 1.0
    weighed: str | None = None
    _heard = False

    def __init__(self, plate: str | None = None) -> None:
        super().__init__()
        self.plate = plate

    def _pyro_post_sample(self, msg) -> None:
        if self._heard or self.plate is None or site_is_subsample(msg):
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name == self.plate and frame.size != ANY_SIZE:
                self.value, self._heard = (frame.full_size or frame.size) / frame.size, True

    def _pyro_post_data_scale(self, msg) -> None:
        scale, weighed = msg["value"]
        self.weighed = self.weighed or weighed
        if scale is not None and not self._heard:
            self.value, self._heard = scale, True


@effectful(type="data_scale")
def tell_scale(scale: float | None, weighed: str | None) -> tuple[float | None, str | None]:
    """Tell listeners N / B, and which site is weighed by more than it."""
    return scale, weighed


# --- runs -----------------------------------------------------------------------------------------


def sites_of(
    program: Any,
    role: Role,
    x: Rows,
    *handlers: Messenger,
    into: Sites | None = None,
    dreaming: bool = False,
) -> Sites:
    """The sites of a program's model or guide on the rows of a batch, under further handlers.

    Args:
        program: has ``model`` and ``guide``.
        role: which of them runs.
        x: the rows.
        handlers: of Pyro's kind, the first outermost.
        into: takes the sites, also those that were met before the function raised.
        dreaming: draw what is observed.
    """
    found: Sites = {} if into is None else into
    function = getattr(program, role)
    trace = poutine.trace()
    try:
        _run(function, x, *handlers, *([Dreaming()] if dreaming else []), trace)
    finally:
        messages = {
            name: message
            for name, message in trace.trace.nodes.items()
            if message["type"] == "sample" and not site_is_subsample(message)
        }
        plate = rows_plate(program, role, list(messages.values()), x)
        for name in _summed_out(messages, handlers):
            del messages[name]
        for name, message in messages.items():
            found[name] = _site(message, plate, num_rows(x))
    tell_scale(*scale_of(found))
    return found


def _summed_out(messages: Mapping[str, Any], handlers: tuple[Messenger, ...]) -> list[str]:
    """What ``pyro.sample(..., obs=x, obs_mask=seen)`` draws where x is missing, by its site.

    Without a guide of its own it is drawn from its own law, log q = log p, and leaves no term.
    """
    given = {name for each in handlers if isinstance(each, At) for name in each.values}
    drawn = [name for name in messages if name.endswith("_unobserved") and name not in given]
    return [name for name in drawn if f"{name.removesuffix('_unobserved')}_observed" in messages]


def sites_of_both(program: Any, x: Rows, *, reparameterize: bool = True) -> tuple[Sites, Sites]:
    """Run the guide, then the model at its latents: the sites of guide and model."""
    guide = sites_of(program, "guide", x, *([] if reparameterize else [Detached()]))
    return guide, sites_of(program, "model", x, At(values_of(guide)))


def dreamt_sites(program: Any, x: Rows, at: Mapping[str, Tensor]) -> Sites:
    """The sites of the model, which draws what it observes; at these latents, where given."""
    return sites_of(program, "model", x, At(at), dreaming=True)


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
        try:
            function(x)
        except ValueError as error:
            if (said := plate_of_other_size(error, num_rows(x))) is None:
                raise
            raise ValueError(said) from error
