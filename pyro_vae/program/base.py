r"""Programs: a generative model and its guide as ordinary Pyro functions, in one module.

A *program* has ``model(x)`` and ``guide(x)``.  ``x`` is a tensor ``(B, ...)``, or a dict of
tensors with a common first dimension whose entry ``"x"`` is observed and whose others are
covariates.  Functions with several parameters, ``model(x, y)`` beside ``guide(x)`` or
``guide(x, y)``, are given the entries of a dict by name, each those that it has (see
:mod:`pyro_vae.program.arguments`); the model's first parameter then stands for ``"x"``.  They may
also be called as Pyro's ``SVI`` does, ``svi.step(x, y)``.  Sites of a datum live in
``pyro.plate("data", len(x))``, and the observed site takes the value of ``x`` itself::

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
import copy
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.params import param_with_module_name
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor, nn
from torch.distributions import transform_to

from pyro_vae.program.arguments import Arguments, Signature
from pyro_vae.program.automatic import run_automatic
from pyro_vae.program.copies import Memo, Watch, with_copies
from pyro_vae.program.laws import as_pyro, is_foreign


class _Unconstrained:
    """What Pyro calls to get at a parameter: a weak reference that can be pickled, as empty."""

    def __init__(self, parameter: Tensor | None = None) -> None:
        self._refer = (lambda: None) if parameter is None else weakref.ref(parameter)

    def __call__(self) -> Tensor | None:
        return self._refer()

    def __reduce__(self) -> tuple:
        return _Unconstrained, ()  # the next announcement makes another


@effectful(type="param")
def _announce(parameter: Tensor) -> Tensor:
    parameter.unconstrained = _Unconstrained(parameter)  # type: ignore[attr-defined]
    return parameter


class _OwnParameters(Messenger):
    """Answers ``pyro.param`` and ``pyro.module`` from the program: the store stays empty.

    It also brings distributions of torch, which Pyro cannot sample, into Pyro's form.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def _pyro_sample(self, msg) -> None:
        if is_foreign(msg["fn"]):
            msg["fn"] = as_pyro(msg["fn"], msg["name"])
            BroadcastMessenger._pyro_sample(msg)  # the plates inside have passed it by

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


def _announcing(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def announced(self: Program, *args: Any, **kwargs: Any) -> Any:
        with _OwnParameters(self), _store_set_aside(), self._watched(name):
            for own, parameter in self.named_parameters():
                if parameter.requires_grad:
                    full_name = param_with_module_name("program", own)
                    _announce(parameter, name=full_name)
            # A call of super().model(...) passes what its author says.
            if getattr(type(self), name) is announced:
                if len(args) == 1 and not kwargs and isinstance(args[0], dict):
                    args, kwargs = self._takes().given(name, args[0])
                return self._written(name)(*args, **kwargs)
            return _bound(function, self)(*args, **kwargs)

    return announced


def _bound(function: Any, program: Program) -> Callable[..., Any]:
    """A function of a class as a method: a handler around it, or a static one, is one too."""
    get = getattr(type(function), "__get__", None)
    return function if get is None else get(function, program, type(program))


class Program(nn.Module):
    """A generative model and its guide, whose parameters Pyro sees and whose store it never uses.

    Three ways to make one:

    * subclass it and write ``model(self, x)`` and ``guide(self, x)``, or ``model(self, x, y)``;
    * ``Program(model, guide, decoder=decoder)`` from plain functions, with the modules that they
      use passed by name; ``pyro.param`` and ``pyro.module`` are answered from the program;
    * ``Program(module)`` around a stranger's module that has ``model`` and ``guide``.

    Args:
        model: a function of ``x``, or of several entries of a dict, or a module with the methods
            ``model`` and ``guide``.
        guide: a function of ``x`` likewise; or, where all data share all latents, one of Pyro's
            automatic guides, ``AutoNormal(model)`` or its kin.
        observed: the name of the observed site, where there are several and none is ``"x"``.
        plate: the name of the rows' plate, where it is neither ``"data"`` nor the one around the
            observed site that has as many members as there are rows.
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
        >>> from pyro_vae.program import materialize
        >>> materialize(program, torch.zeros(4, 3))
        >>> sorted(name for name, _ in program.named_parameters())
        ['created.mean', 'decoder.bias', 'decoder.weight']
    """

    observed: str | None = None
    plate: str | None = None
    build_record: dict[str, Any] | None = None  # see `built_by_name`

    def __init__(
        self,
        model: Callable[..., Any] | nn.Module | None = None,
        guide: Callable[..., Any] | None = None,
        *,
        observed: str | None = None,
        plate: str | None = None,
        **modules: nn.Module,
    ) -> None:
        super().__init__()
        for what, name in (("observed", observed), ("plate", plate)):
            if name is not None and not isinstance(name, str):
                raise TypeError(
                    f"{what} is {type(name).__name__}, expected the name of a "
                    f"{'site' if what == 'observed' else 'plate'}; modules of these names need "
                    "another"
                )
            if name is not None:  # a subclass may have an attribute of its own
                setattr(self, what, name)
        self.created = nn.Module()  # parameters that `pyro.param` statements ask for
        self._constraints: dict[str, Any] = {}
        for name, module in modules.items():
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name}={module!r} is no torch.nn.Module: pass modules by name")
            self.add_module(name, module)
        if isinstance(guide, AutoGuide):
            self.autoguide = guide  # a module, whose parameters are the program's
            guide = functools.partial(run_automatic, guide)
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
                setattr(cls, name, _announcing(cls.__dict__[name], name))

    @functools.partial(_announcing, name="model")
    def model(self, *args: Any, **kwargs: Any) -> Any:
        """The generative model p(x, z): a Pyro function."""
        return self._function("_model")(*args, **kwargs)

    @functools.partial(_announcing, name="guide")
    def guide(self, *args: Any, **kwargs: Any) -> Any:
        """The recognition model q(z | x): a Pyro function."""
        return self._function("_guide")(*args, **kwargs)

    # --- arguments --------------------------------------------------------------------------------

    _taken: Arguments | None = None  # found out once

    def _takes(self) -> Arguments:
        """What model and guide take, and so how a dict is passed."""
        if self._taken is None:
            self._taken = Arguments(*(self._signature(name) for name in ("model", "guide")))
        return self._taken

    def _signature(self, name: str) -> Signature:
        if getattr(type(self), name) is getattr(Program, name) and (
            getattr(self, f"_{name}", None) is None
        ):
            return Signature()  # it has none
        return Signature.of(self._written(name))

    def _written(self, name: str) -> Callable[..., Any]:
        """The model or the guide as its author wrote it."""
        announced = getattr(type(self), name)
        if announced is getattr(Program, name):
            return self._function(f"_{name}")
        return _bound(announced.__wrapped__, self)

    # --- copies -----------------------------------------------------------------------------------

    _unproven: frozenset[str] = frozenset()  # of a copy: functions that have not run yet
    _copied_from: list[weakref.ref] | None = None  # the original's tensors, where known

    def __deepcopy__(self, memo: Memo) -> Program:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        # (A module that is the model, or the guide, is copied with the other modules.)
        functions = {n: f for n, f in self.__dict__.items() if n in ("_model", "_guide")}
        rest = {n: v for n, v in self.__dict__.items() if n not in (*functions, "_copied_from")}
        twin.__dict__.update(copy.deepcopy(rest, memo))
        twin.__dict__.update({n: with_copies(f, memo) for n, f in functions.items()})
        twin._unproven = frozenset(("model", "guide"))
        twin._copied_from = [weakref.ref(t) for t in (*self.parameters(), *self.buffers())]
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_copied_from"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._unproven = frozenset(("model", "guide"))

    @contextlib.contextmanager
    def _watched(self, name: str) -> Iterator[None]:
        """In a copy's first runs, refuse modules that are not its own."""
        if name not in self._unproven:
            yield
            return
        with Watch(self, self._copied_from):
            yield
        self._unproven = self._unproven - {name}
        if not self._unproven:
            self._copied_from = None

    # ---

    def _function(self, name: str) -> Callable[..., Any]:
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
                    parameter.unconstrained = _Unconstrained(parameter)  # type: ignore[attr-defined]
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
        value.unconstrained = _Unconstrained(own)
        return value
