r"""Programs: a generative model and its guide as ordinary Pyro functions, in one module.

A *program* has ``model(x)`` and ``guide(x)``.  ``x`` is a tensor ``(B, ...)``, or a dict of
tensors with a common first dimension whose entry ``"x"`` is observed and whose others are
covariates.  Sites of a datum live in ``pyro.plate("data", len(x))``, and the observed site takes
the value of ``x`` itself::

    class Mine(pv.Program):
        def model(self, x):                                       # p(z) p(x | z)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", self.likelihood(z), obs=x)

        def guide(self, x):                                       # q(z | x)
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.posterior(x))

Parameters live in modules and announce themselves.  Pyro's ``SVI`` trains only what it sees as a
``param`` message, so a plain ``nn.Module`` trains nothing, without a word; and its global store
lets two models with equal names share, or lose, their parameters.  Here each program sends a
message for every parameter of its own, and the store stays empty.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.params import param_with_module_name
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor, nn
from torch.distributions import transform_to
from torch.func import functional_call

Rows = Tensor | dict[str, Tensor]  # what a program is called with: (B, ...) in each entry


def observed_rows(x: Rows) -> Tensor:
    """The observed tensor of ``x``: itself, or the entry ``"x"`` of a dict."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, dict) and isinstance(x.get("x"), Tensor):
        return x["x"]
    raise TypeError(
        f"x is {type(x).__name__}, expected a tensor (B, ...) or a dict of tensors with an "
        'entry "x": wrap arrays with torch.as_tensor or pv.datasets.from_array'
    )


def map_rows(function: Callable[[Tensor], Tensor], x: Rows) -> Rows:
    """Apply ``function`` to the tensor, or to each entry of the dict."""
    if isinstance(x, dict):
        return {name: function(value) for name, value in x.items()}
    return function(x)


def num_rows(x: Rows) -> int:
    """The number of data in ``x``; entries of a dict must agree on it."""
    rows = len(observed_rows(x))
    if isinstance(x, dict):
        for name, value in x.items():
            if len(value) != rows:
                raise ValueError(
                    f'entry "{name}" of x has {len(value)} rows and entry "x" has {rows}: '
                    "the entries need a common first dimension"
                )
    return rows


@effectful(type="param")
def _announce(parameter: Tensor) -> Tensor:
    parameter.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
    return parameter


class _OwnParameters(Messenger):
    """Answers ``pyro.param`` and ``pyro.module`` from the program: the store stays empty."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def _pyro_param(self, msg) -> None:
        store = pyro.get_param_store()
        if msg["done"] or msg["fn"] != store.get_param:
            return  # an announcement: its value is already there
        name, *rest = msg["args"]
        if any(store._params.get(name) is p for p in self.program.parameters()):
            return  # a PyroModule of ours just put it there, for as long as this call lasts
        msg["value"] = self.program._answer(name, rest[0] if rest else None, msg["kwargs"])
        msg["done"] = True


@contextlib.contextmanager
def _store_set_aside() -> Iterator[None]:
    """An empty store while a program runs, because PyroModules write to it by themselves.

    (``ParamStoreDict.scope`` would do, if it did not take the ``unconstrained`` off the parameters
    that it meets, which Pyro's ``SVI`` asks for after the call.)
    """
    store = pyro.get_param_store()
    kept = store._params, store._param_to_name, store._constraints
    store._params, store._param_to_name, store._constraints = {}, {}, {}
    try:
        yield
    finally:
        store._params, store._param_to_name, store._constraints = kept


def _announcing(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def announced(self: Program, x: Rows) -> Any:
        with _OwnParameters(self), _store_set_aside():
            for name, parameter in self.named_parameters():
                if parameter.requires_grad:
                    full_name = param_with_module_name("program", name)
                    _announce(parameter, name=full_name)
            return function(self, x)

    return announced


class Program(nn.Module):
    """A generative model and its guide, whose parameters Pyro sees and whose store it never uses.

    Three ways to make one:

    * subclass it and write ``model(self, x)`` and ``guide(self, x)``;
    * ``Program(model, guide, decoder=decoder)`` from plain functions, with the modules that they
      use passed by name; ``pyro.param`` and ``pyro.module`` are answered from the program;
    * ``Program(module)`` around a stranger's module that has ``model`` and ``guide``.

    Args:
        model: a function of ``x``, or a module with the methods ``model`` and ``guide``.
        guide: a function of ``x``.
        observed: the name of the observed site, where it is not ``"x"``.
        modules: the modules that ``model`` and ``guide`` call.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> decoder = torch.nn.Linear(2, 3)
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     mean = pyro.param("mean", torch.zeros(2))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))
        >>> program = Program(model, guide, decoder=decoder)
        >>> materialize(program, torch.zeros(4, 3))
        >>> sorted(name for name, _ in program.named_parameters())
        ['created.mean', 'decoder.bias', 'decoder.weight']
    """

    build_record: dict[str, Any] | None = None  # see `built_by_name`

    def __init__(
        self,
        model: Callable[[Rows], Any] | nn.Module | None = None,
        guide: Callable[[Rows], Any] | None = None,
        *,
        observed: str = "x",
        **modules: nn.Module,
    ) -> None:
        super().__init__()
        self.observed = observed
        self.created = nn.Module()  # parameters that `pyro.param` statements ask for
        self._constraints: dict[str, Any] = {}
        for name, module in modules.items():
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name}={module!r} is no torch.nn.Module: pass modules by name")
            self.add_module(name, module)
        if isinstance(guide, AutoGuide):
            raise TypeError(
                f"the guide is {type(guide).__name__}, which holds parameters for every row it was "
                "made with and so fits no minibatches: write a guide(x) with a network, as in "
                "pyro_vae.models.bernoulli_vae"
            )
        if model is not None and guide is None:
            if not (hasattr(model, "model") and hasattr(model, "guide")):
                raise TypeError(
                    f"{type(model).__name__} has no methods model(x) and guide(x): pass a module "
                    "that has both, or two functions, Program(model, guide)"
                )
            wrapped: Any = model
            if isinstance(wrapped, nn.Module):
                self.wrapped = wrapped
            model, guide = wrapped.model, wrapped.guide
        self._model, self._guide = model, guide

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("model", "guide"):
            if name in cls.__dict__:
                setattr(cls, name, _announcing(cls.__dict__[name]))

    @_announcing
    def model(self, x: Any) -> Any:
        """The generative model p(x, z): a Pyro function."""
        return self._function("_model")(x)

    @_announcing
    def guide(self, x: Any) -> Any:
        """The recognition model q(z | x): a Pyro function."""
        return self._function("_guide")(x)

    def _function(self, name: str) -> Callable[[Rows], Any]:
        function = getattr(self, name, None)
        if function is None:
            raise TypeError(
                f"{type(self).__name__} has no {name[1:]}: define {name[1:]}(self, x) in the "
                "subclass, or pass it, Program(model, guide)"
            )
        return function

    def _answer(self, name: str, initial: Any, options: dict[str, Any]) -> Tensor:
        """The value of ``pyro.param(name, initial, constraint=...)``."""
        if isinstance(initial, Tensor):
            for parameter in self.parameters():
                if parameter is initial:  # `pyro.module` of a module that we own
                    parameter.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
                    return parameter
        if "$$$" in name:
            module = name.split("$$$")[0]
            raise ValueError(
                f'pyro.module("{module}", ...) names a module that the program does not own: '
                f"pass it by name, pv.Program(model, guide, {module}={module})"
            )
        constraint = options.get("constraint", torch.distributions.constraints.real)
        key = name.replace(".", "/")  # torch allows no dots in a parameter's name
        if key not in self.created._parameters:
            if initial is None:
                raise ValueError(
                    f'pyro.param("{name}") has no value yet: give it one where it is first used'
                )
            with torch.no_grad():
                value = initial() if callable(initial) else initial
                unconstrained = transform_to(constraint).inv(value.detach()).contiguous().clone()
            self.created.register_parameter(key, nn.Parameter(unconstrained))
            self._constraints[key] = constraint
        elif repr(self._constraints[key]) != repr(constraint):
            raise ValueError(
                f'pyro.param("{name}") was first declared with {self._constraints[key]} and now '
                f"with {constraint}: use one constraint, or two names"
            )
        # Not get_parameter(key): functional_call puts tensors there that are no nn.Parameters.
        own: Any = self.created._parameters[key]
        value = transform_to(constraint)(own)
        if isinstance(initial, Tensor) and initial.shape != value.shape:
            raise ValueError(
                f'pyro.param("{name}") was first declared with shape {tuple(value.shape)} and now '
                f"with {tuple(initial.shape)}: use one shape, or two names"
            )
        value.unconstrained = weakref.ref(own)
        return value


@contextlib.contextmanager
def evaluating(program: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout, fixed batch statistics) for a while; then each part's own."""
    modes = {module: module.training for module in program.modules()}
    program.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class VAE(Program):
    """A variational auto-encoder from three modules, each of which returns a distribution.

    .. math:: z \\sim p(z), \\qquad x \\mid z \\sim p(x \\mid z), \\qquad q(z \\mid x)

    Args:
        prior: called as ``prior()``; returns p(z) with batch shape ``()``.
        likelihood: called as ``likelihood(z)``; returns p(x | z) with batch shape ``(B,)``.
        posterior: called as ``posterior(x)``; returns q(z | x) with batch shape ``(B,)``.

    Each owns its network, so that swapping the prior, the likelihood or the posterior family is
    passing another object.  Source: Kingma & Welling (2014), section 3.
    """

    def __init__(self, *, prior: nn.Module, likelihood: nn.Module, posterior: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior

    def model(self, x: Any) -> None:
        """p(z) p(x | z)."""
        with pyro.plate("data", num_rows(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z), obs=observed_rows(x))

    def guide(self, x: Any) -> None:
        """q(z | x)."""
        with pyro.plate("data", num_rows(x)):
            pyro.sample("z", self.posterior(x))


P = ParamSpec("P")
Built = TypeVar("Built", bound=Program)


def built_by_name(build: Callable[P, Built]) -> Callable[P, Built]:
    """For the ``build`` of a file in ``models/``: notes on the program how to build it again.

    ``program.build_record`` is then ``{"model": name of the file, "options": {...}}``, so that a
    saved run is loaded without its program.  It is None where an option is no plain JSON value,
    such as a prior of one's own, or where ``build`` is in no file of ``pyro_vae.models``.
    """
    signature = inspect.signature(build)
    package, _, model = build.__module__.rpartition(".")

    @functools.wraps(build)
    def recorded(*args: P.args, **kwargs: P.kwargs) -> Built:
        program = build(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        if package == "pyro_vae.models" and _is_plain(given.arguments):
            program.build_record = {"model": model, "options": dict(given.arguments)}
        return program

    return recorded


def _is_plain(options: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(json.dumps(options, allow_nan=False)) == options)
    except (TypeError, ValueError):
        return False


class _Call(nn.Module):
    """Lets ``functional_call`` swap a program's parameters around any function of it."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self.program, *args)


def call_with(
    program: nn.Module, parameters: dict[str, Tensor], function: Callable[..., Any], *args: Any
) -> Any:
    """``function(program, *args)`` while ``parameters`` stand in for the program's own."""
    swapped = {f"program.{name}": value for name, value in parameters.items()}
    return functional_call(_Call(program), swapped, (function, *args))


def require_program(program: Any) -> None:
    """Refuse what has no model and guide, with the next step.

    Raises:
        TypeError: for anything but a module with ``model(x)`` and ``guide(x)``.
    """
    if isinstance(program, nn.Module) and all(
        callable(getattr(program, name, None)) for name in ("model", "guide")
    ):
        return
    if isinstance(getattr(program, "program", None), nn.Module):
        advice = f"pass the {type(program).__name__}'s program, run.program"
    elif isinstance(program, type):
        advice = f"pass an instance, {program.__name__}(...)"
    else:
        advice = "subclass pv.Program, or wrap two functions, pv.Program(model, guide, net=net)"
    raise TypeError(
        f"program is {getattr(program, '__name__', type(program).__name__)}, expected a module "
        f"with model(x) and guide(x): {advice}"
    )


def materialize(program: Any, x: Rows) -> None:
    """Run model and guide once, so that parameters which ``pyro.param`` creates are there.

    Raises:
        ValueError: where they fail on these rows; the cause is chained.
    """
    from pyro_vae.noise import seeded

    for name in ("guide", "model"):
        try:
            with torch.no_grad(), seeded(0), pyro.poutine.block():
                getattr(program, name)(x)
        except RuntimeError as error:  # torch on shapes and dtypes
            rows = observed_rows(x)
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            advice = "pv.check(program, x) says more"
            if not rows.is_floating_point():
                advice = "pass x.float() where the networks take real numbers"
            raise ValueError(
                f"{name}(x) fails on a batch of shape {tuple(rows.shape)}, {rows.dtype}: {line}; "
                f"{advice}"
            ) from error
