r"""What an objective is: a loss per datum, and, for those that need it, memory between steps.

An objective is a Pyro ``ELBO``, so that it works in ``pv.fit`` *and* in anyone's own
``SVI(program.model, program.guide, optim, loss=WakeSleep())``.  Sign and scale are Pyro's: the
loss is a sum over the batch, the plate's scale applied once.  Everything reported is nats per
datum.

An objective never sees an index, the data size, padding, a random generator, an optimizer or a
device.  So it cannot mix rows, and it can be captured, replicated and resumed without knowing.
"""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_vae.densities.tables import Densities
from pyro_vae.densities.traces import DataScale, pyro_traces
from pyro_vae.program.arguments import called
from pyro_vae.program.rows import Rows, num_rows
from pyro_vae.recording import (
    KIND,
    Form,
    Recorded,
    differences,
    form_of,
    is_comparable,
    qualified,
    record_of,
    shown,
)

Stats = dict[str, Tensor]  # name -> (B,), detached: the columns of the history


class State(NamedTuple):
    """An objective's memory: constants live on the objective, everything that changes lives here.

    Attributes:
        rows: name -> (B, ...): belongs to a datum, such as a Markov chain.
        shared: name -> small tensor, such as a step size; changed by ``advance`` only.
    """

    rows: dict[str, Tensor]
    shared: dict[str, Tensor]


EMPTY = State({}, {})


class _Made(ABCMeta):
    """Marks an objective whose constructor is through: what is set from then on is recorded."""

    if not TYPE_CHECKING:

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            made = super().__call__(*args, **kwargs)
            vars(made)["_made"] = True
            return made


class Objective(Recorded, ELBO, metaclass=_Made):
    """Base class of all objectives.  A stateless one writes ``loss_per_datum`` and nothing else.

    Example:
        >>> from pyro_vae.densities.particles import densities
        >>> class Mine(Objective):
        ...     def loss_per_datum(self, program, x):
        ...         return -densities(program, x).log_w.mean(0)  # (B,) nats

    Attributes of ``self`` are constants: one that changes is frozen when a step is captured.
    """

    refresh_every: int = 0  # 0: never; else a new minibatch is drawn and refreshed that often
    has_bound: bool = True  # whether the guide is trained, so that an ELBO means something
    # What an author says of the class, from which the folder's tests derive what they ask of it:
    estimates: str | None = None  # the mean of -loss: "elbo", "K-sample bound"
    takes_global: bool = True  # latents outside the plate; else it refuses them by name
    needs_rsample: bool = True  # of the guide, and so no discrete latents
    least_particles: int | None = 1  # None: it takes no num_particles
    takes_weights: bool = False  # of poutine.scale on single terms
    scores_twice: bool = False  # the density of a draw, so the guide may draw nothing but its sites
    # Where ``refresh`` calls one costly pure function of its rows over and over: that function,
    # (program, x, rows) -> tensors.  An engine may compile it and call
    # ``refresh(None, None, state, unit=compiled, noise=source)``: neither program nor x is needed.
    # The rows may then be those of several replicas; what these share comes once for each row.
    unit: Callable[..., Any] | None = None

    def loss_per_datum(self, program: Any, x: Rows) -> Tensor:
        """The loss of each datum, (B,) nats, unscaled."""
        raise TypeError(
            f"{type(self).__name__} defines neither loss_per_datum(program, x) nor "
            "terms(program, x, state): write one of them"
        )

    def init(self, program: Any, x: Rows) -> State:
        """The state before the first step; ``x`` holds all rows that ``rows`` shall have."""
        return EMPTY

    def terms(self, program: Any, x: Rows, state: State) -> tuple[Tensor, Stats]:
        """The loss (B,) and the statistics, name -> (B,)."""
        return self.loss_per_datum(program, x), {}

    def refresh(self, program: Any, x: Rows, state: State) -> tuple[dict[str, Tensor], Stats]:
        """New ``rows`` and statistics (an E-step); no gradient leaves it."""
        return state.rows, {}

    def advance(self, shared: dict[str, Tensor], means: dict[str, Tensor]) -> dict[str, Tensor]:
        """New ``shared``, from the statistics averaged over the batch."""
        return shared

    def require_unweighed(self, site: str | None) -> None:
        """Refuse the factor of a site, where no term of this objective takes one.

        Raises:
            ValueError: naming the site.
        """
        if site is not None and not self.takes_weights:
            raise ValueError(
                f'site "{site}" is weighed by poutine.scale, expected a factor of 1 under '
                f"{type(self).__name__}(), whose loss is no sum of terms to be weighed: train by "
                "AEVB(), which weighs KL and observation as Pyro's Trace_ELBO does, or leave it "
                "out"
            )

    def leapfrogs(self, rows: int) -> int:
        """Leapfrog steps that ``refresh`` of this many rows takes, counted by row."""
        return 0

    def __setattr__(self, name: str, value: Any) -> None:
        record = vars(self).get("_record")
        if vars(self).get("_made") and record is not None and not name.startswith("_"):
            arguments = {**record["arguments"], name: form_of(value)}
            defaults = [each for each in record["defaults"] if each != name]
            super().__setattr__("_record", {**record, "arguments": arguments, "defaults": defaults})
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        if vars(self).get("_record") is None:  # a __new__ of its own has left it out
            return f"{type(self).__name__}(...)"
        return shown(record_of(self), always="num_particles")

    # --- inside pyro.infer.SVI ------------------------------------------------------------------

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Scale times the sum of ``terms`` over the batch: the loss as Pyro counts it."""
        program, x = called(program_of(model, guide), args, kwargs)
        state = self._remembered(program, x)
        with DataScale() as scale:
            loss, stats = self.terms(program, x, state)
        self.require_unweighed(scale.weighed)
        means = {name: value.detach().mean() for name, value in stats.items()}
        self._memory = state._replace(shared=self.advance(state.shared, means))
        return scale.value * loss.sum()

    def _remembered(self, program: Any, x: Rows) -> State:
        memory: State | None = getattr(self, "_memory", None)
        if memory is None:
            memory = self.init(program, x)
        for name, rows in memory.rows.items():
            if len(rows) != num_rows(x):
                raise ValueError(
                    f'x has {num_rows(x)} rows and the state "{name}" of {type(self).__name__} '
                    f"has {len(rows)}: pass the same rows, or use pv.fit"
                )
        self._calls = getattr(self, "_calls", -1) + 1
        if self.refresh_every and self._calls % self.refresh_every == 0:
            refreshed, stats = self.refresh(program, x, memory)
            means = {name: value.detach().mean() for name, value in stats.items()}
            memory = State(refreshed, self.advance(memory.shared, means))
        return memory

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, without gradients; the objective's memory stays as it was."""
        kept = ("_memory", "_calls")
        before: dict[str, Any] = {name: vars(self)[name] for name in kept if name in vars(self)}
        try:
            with torch.no_grad():
                return self.differentiable_loss(model, guide, *args, **kwargs).item()
        finally:
            for name in kept:
                vars(self).pop(name, None)
            vars(self).update(before)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a number; gradients are added to the parameters' ``.grad``.

        Raises:
            ValueError: where Pyro sees no parameter, so that a step would change nothing.
        """
        with poutine.trace(param_only=True) as seen:
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if not seen.trace.nodes:
            raise ValueError(
                "neither model nor guide announces a parameter to Pyro, so nothing would be "
                "trained: wrap them, pv.Program(module) or pv.Program(model, guide, net=net)"
            )
        loss.backward()
        return loss.item()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        program, x = called(program_of(model, guide), args, kwargs)
        guide_trace, model_trace = pyro_traces(program, x)
        return model_trace, guide_trace


def objective_record(objective: ELBO) -> Form:
    """What an objective, or an ELBO of Pyro's, was made from: the answer to "is it the same?".

    Pyro's have attributes of the names of their arguments; ``max_plate_nesting`` is left out, which
    the first call replaces by a guess.
    """
    if isinstance(objective, Recorded):
        try:
            return record_of(objective)
        except TypeError as error:
            return {KIND: "incomparable", "class": qualified(type(objective)), "why": str(error)}
    parameters = [inspect.signature(cls).parameters for cls in (ELBO, type(objective))]
    usual = {name: p.default for each in parameters for name, p in each.items()}
    held = {
        name: value
        for name, value in vars(objective).items()
        if not name.startswith("_") and name != "max_plate_nesting"
    }
    return {
        KIND: "made",
        "class": qualified(type(objective)),
        "arguments": {name: form_of(value) for name, value in held.items()},
        "defaults": [name for name, value in held.items() if usual.get(name, held) is value],
    }


def name_of(objective: ELBO) -> str:
    """An objective in one line, as it would be typed."""
    if isinstance(objective, Objective):
        return repr(objective)
    return shown(objective_record(objective), always="num_particles")


def names_of(objectives: Sequence[ELBO]) -> list[str]:
    """Their names in the rows of a table, each of its own.

    Where two that differ print alike, as by a ``__repr__`` of their own, they are named by what
    they were made from, then by the module of their class too, then by number.

    Raises:
        ValueError: two are the same, or share a name and cannot be compared.
    """
    names = [name_of(objective) for objective in objectives]
    for second, name in enumerate(names):
        first = names.index(name)
        if first == second:
            continue
        pair = objectives[first], objectives[second]
        mine, theirs = (objective_record(each) for each in pair)
        why = differences(mine, theirs)
        if same_objective(*pair) or not (is_comparable(mine) and is_comparable(theirs)):
            raise ValueError(
                f"objectives are {names}, expected different ones: {name} is there twice"
                + (f", under one name ({'; '.join(why)})" if why else "")
            )
    for full in (False, True):
        names = [
            shown(objective_record(each), "num_particles", full=full)
            if names.count(name) > 1
            else name
            for name, each in zip(names, objectives, strict=True)
        ]
    return [
        f"{name} #{names[: i + 1].count(name)}" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def same_objective(one: ELBO, other: ELBO) -> bool:
    """Whether two are one object, or of one class and made from the same; not by how they print."""
    if one is other:
        return True
    mine, theirs = objective_record(one), objective_record(other)
    comparable = is_comparable(mine) and is_comparable(theirs)
    return type(one) is type(other) and comparable and not differences(mine, theirs)


class Pair:
    """Two plain functions as a program, for Pyro's ``SVI`` with its own parameter store."""

    def __init__(self, model: Any, guide: Any) -> None:
        self.model, self.guide = model, guide


def program_of(model: Any, guide: Any) -> Any:
    """The program whose bound methods ``model`` and ``guide`` are, else the pair of them."""
    owner = getattr(model, "__self__", None)
    names = [getattr(function, "__name__", "") for function in (model, guide)]
    same = isinstance(owner, nn.Module) and getattr(guide, "__self__", None) is owner
    return owner if same and names == ["model", "guide"] else Pair(model, guide)


def bound_stats(d: Densities) -> Stats:
    """The columns that every objective with a guide reports: nats per datum, (B,) each.

    ``bound`` is estimator A, log p(x, z) - log q(z | x); ``kl.<site>`` is closed where torch
    knows the form, else log q - log p at the draws.
    """
    stats = {
        "bound": d.log_w.mean(0) + d.global_share,
        "reconstruction": d.log_likelihood.mean(0),
        **{f"kl.{name}": term for name, term in d.kl_terms.items()},
    }
    return {name: value.detach() for name, value in stats.items()}
