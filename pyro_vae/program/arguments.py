"""What ``model`` and ``guide`` are called with: one value, or entries of a dict by name.

================================================  ==================================================
functions                                         a dict of entries is passed
================================================  ==================================================
``model(x, y)``, ``guide(x)``                     by name: ``y`` to the model alone
``model(x, y=None)``, ``model(**entries)``        by name, where ``x`` is among the entries
``model(x)``, ``guide(x)``                        whole: ``x["y"]`` is the function's business
================================================  ==================================================

It is one decision for both functions, and it is taken by what they were written as: handlers,
decorators and ``functools.partial`` around them are looked through.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Signature:
    """What one function takes.

    Attributes:
        names: its parameters, in order.
        required: those that have no default.
        positional: those that cannot be given by name.
        takes_any: whether it has ``**kwargs``.
        known: whether the function says what it takes.
    """

    names: tuple[str, ...] = ()
    required: frozenset[str] = frozenset()
    positional: frozenset[str] = frozenset()
    takes_any: bool = False
    known: bool = False

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Signature:
        parameters = _parameters(function)
        if parameters is None:
            return cls()
        own = [p for p in parameters if p.kind not in VARIADIC]
        kinds = {p.kind for p in parameters}
        return cls(
            tuple(p.name for p in own),
            frozenset(p.name for p in own if p.default is Parameter.empty),
            frozenset(p.name for p in own if p.kind is Parameter.POSITIONAL_ONLY),
            Parameter.VAR_KEYWORD in kinds,
            bool(own) or not kinds.issuperset(VARIADIC),
        )

    def given(self, entries: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positions and keywords of a call by name: of the entries those that it takes."""
        args, rest = [], dict(entries)
        for name in self.names:
            if name in self.positional:
                if name not in rest:
                    break
                args.append(rest.pop(name))
        if self.known and not self.takes_any:
            rest = {name: value for name, value in rest.items() if name in self.names}
        return tuple(args), rest

    def __str__(self) -> str:
        optional = [n if n in self.required else f"{n}=..." for n in self.names]
        return f"({', '.join([*optional, *(['**'] if self.takes_any else [])])})"


@dataclass(frozen=True)
class Arguments:
    """What the two functions of a program take."""

    model: Signature
    guide: Signature

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters of the model in order, then those that the guide alone has."""
        return tuple(dict.fromkeys([*self.model.names, *self.guide.names]))

    def by_name(self, entries: Iterable[str]) -> bool:
        """Whether a dict of these entries is passed by name, not as one value."""
        entries = {*entries}
        both = [each for each in (self.model, self.guide) if each.known]
        takes_any = any(each.takes_any for each in both)
        if not (takes_any or any(len(each.names) > 1 for each in both)):
            return False
        if entries <= {*self.names} or any(len(each.required) > 1 for each in both):
            return True
        return takes_any and all(entries >= each.required for each in both)

    def given(
        self, role: str, entries: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positions and keywords with which ``role`` is called for a dict.

        Raises:
            TypeError: where entries that it needs are missing: got, expected, and what to do.
        """
        if not self.by_name(entries):
            return (entries,), {}
        signature: Signature = getattr(self, role)
        self._require(role, entries)
        return signature.given(entries)

    def require(self, x: Tensor | Mapping[str, Any]) -> None:
        """Refuse rows that the functions cannot be called with.

        Raises:
            TypeError: entries that are missing, or that neither function has a parameter for.
        """
        if isinstance(x, Mapping) and self.by_name(x):
            for role in ("model", "guide"):
                self._require(role, x)
            if any(s.takes_any or not s.known for s in (self.model, self.guide)):
                return
            unknown = [name for name in x if name not in self.names]
            if unknown:
                raise TypeError(
                    f'the data have an entry "{unknown[0]}" and neither model{self.model} nor '
                    f"guide{self.guide} has a parameter of that name: leave it out, or let one of "
                    "them take it"
                )
            return
        for role in ("model", "guide"):
            signature: Signature = getattr(self, role)
            if len(signature.required) > 1:
                names = ", ".join(f'"{n}": {n}' for n in self.names)
                raise TypeError(
                    f"the data are one tensor and {role}{signature} takes {len(signature.required)}"
                    f": pass a dict, {{{names}}}, or a tuple in the order of the model's parameters"
                )

    def _require(self, role: str, entries: Mapping[str, Any]) -> None:
        signature: Signature = getattr(self, role)
        missing = [n for n in signature.names if n in signature.required and n not in entries]
        if missing:
            got = ", ".join(f'"{name}"' for name in entries)
            raise TypeError(
                f"the data have the entries {got}, expected those of {role}{signature}, which "
                f'needs "{missing[0]}" too: add it, or let {role} do without, '
                f"{role}({', '.join(signature.names)}) with {missing[0]}=None"
            )


def arguments_of(program: Any) -> Arguments:
    """What the functions of a program take, or of anything that has two."""
    takes = getattr(program, "_takes", None)
    if takes is not None:
        return takes()
    return Arguments(Signature.of(program.model), Signature.of(program.guide))


def _parameters(function: Any) -> list[Parameter] | None:
    """The parameters of what was written, behind all that forwards whatever it is given.

    None where that cannot be found out.
    """
    filled = 0  # leading parameters that a method or a partial has filled
    for _ in range(100):  # a function may hold itself
        if isinstance(function, types.MethodType):
            function, filled = function.__func__, filled + 1
        if isinstance(function, nn.Module):
            function = function.forward
            continue
        if isinstance(function, functools.partial):
            if type(function) is not functools.partial:
                function = function.func  # Pyro's handlers around functions, which say nothing
                continue
            inner = _parameters(function.func)
            if inner is not None and not _forwards(inner):
                return _without(_left(inner, function), filled)
        try:
            own = list(inspect.signature(function, follow_wrapped=False).parameters.values())
        except (TypeError, ValueError):
            return None
        own = _without(own, filled)
        if not _forwards(own):
            return own
        behind, more = _behind(function)
        if behind is None:
            return own
        filled = more + (0 if isinstance(behind, types.MethodType) else filled)
        function = behind
    return None


def _forwards(parameters: list[Parameter]) -> bool:
    return {p.kind for p in parameters}.issuperset(VARIADIC)


def _without(parameters: list[Parameter], count: int) -> list[Parameter]:
    """Without the first ones, which are filled already."""
    front = [p for p in parameters if p.kind not in (*VARIADIC, Parameter.KEYWORD_ONLY)][:count]
    return [p for p in parameters if p not in front]


def _left(parameters: list[Parameter], partial: functools.partial) -> list[Parameter]:
    """What a partial leaves: those in front are given, those given by name have a default."""
    return [
        p.replace(kind=Parameter.KEYWORD_ONLY, default=partial.keywords[p.name])
        if p.name in partial.keywords
        else p
        for p in _without(parameters, len(partial.args))
    ]


def _behind(function: Any) -> tuple[Any, int]:
    """What a function hands its arguments to, and how many arguments it adds in front.

    It is what it wraps, or the one function, or else the one module, that it holds.
    """
    if (wrapped := getattr(function, "__wrapped__", None)) is not None:
        return wrapped, 0
    if isinstance(function, functools.partial):
        held = list(function.args)  # Pyro's handlers are partial(_, handler, function)
    elif isinstance(function, types.FunctionType):
        held = list(_cells(function))
    else:
        held = list(getattr(function, "__dict__", {}).values())
    for kinds in ((types.FunctionType, types.MethodType, functools.partial), (nn.Module,)):
        found = [place for place, each in enumerate(held) if isinstance(each, kinds)]
        if len(found) == 1:
            behind_it = len(held) - 1 - found[0] if isinstance(function, functools.partial) else 0
            return held[found[0]], behind_it
    return None, 0


def _cells(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # a name that has no value yet
            yield cell.cell_contents


# --- calls as Pyro's SVI makes them ---------------------------------------------------------------


def called(program: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """A program and rows for a call ``SVI.step(*args, **kwargs)``.

    Raises:
        TypeError: without a tensor among the arguments, or with a ``Data``.
    """
    for value in (*args, *kwargs.values()):
        if hasattr(value, "rows") and hasattr(value, "batch"):
            raise TypeError(
                f"x is a {type(value).__name__}, expected a tensor: pass data.rows(), or use pv.fit"
            )
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor | dict):
        return program, args[0]
    kind = CalledModule if isinstance(program, nn.Module) else Called
    return (made := kind(program, args, kwargs)), made.rows


class Called:
    """A program whose functions are called as ``SVI.step(*args, **kwargs)`` was, with new rows.

    Tensors with as many rows as the first one are rows of data; everything else that was passed
    (``None``, numbers, tensors of other lengths) is the same at every call.

    Args:
        program: has ``model`` and ``guide``.
        args, kwargs: of the call.
    """

    def __init__(self, program: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.program = program
        self.observed = getattr(program, "observed", None)
        self.plate = getattr(program, "plate", None)
        leaves, self._form = pytree.tree_flatten((args, kwargs))
        sizes = [len(t) if isinstance(t, Tensor) and t.dim() else None for t in leaves]
        count = next((size for size in sizes if size is not None), None)
        if count is None:
            raise TypeError(
                f"{len(args)} positional and {len(kwargs)} keyword arguments were passed and none "
                "is a tensor (B, ...), expected rows of data: pass x"
            )
        places = [place for place, size in enumerate(sizes) if size == count]
        self.rows: dict[str, Tensor] = {f"argument {place}": leaves[place] for place in places}
        self._fixed = leaves

    def _call(self, role: str, rows: Mapping[str, Any]) -> Any:
        new = [rows.get(f"argument {place}", leaf) for place, leaf in enumerate(self._fixed)]
        args, kwargs = pytree.tree_unflatten(new, self._form)
        return getattr(self.program, role)(*args, **kwargs)

    def model(self, rows: Mapping[str, Any]) -> Any:
        return self._call("model", rows)

    def guide(self, rows: Mapping[str, Any]) -> Any:
        return self._call("guide", rows)


class CalledModule(Called, nn.Module):
    """The same of a module, whose parameters it shows."""
