"""Copies of programs that are made of plain functions: each calls modules of its own.

Python copies a function as the object it is, so the copy of ``Program(model, guide, enc=enc)``
would hold an ``enc`` of its own and call the original's.  What a function holds (closures, default
values, arguments of ``functools.partial``) can be given to a copy of it; what it finds elsewhere,
such as a global name, cannot.  So a copy also looks, in its first runs, at the parameters that it
meets, and refuses those of another program.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

Memo = dict[int, Any]  # of copy.deepcopy: id of an object -> its copy


def with_copies(function: Any, memo: Memo) -> Any:
    """A function that holds the copies of what was copied, in place of what it held.

    Args:
        function: a function, a method, a ``functools.partial`` or any callable.
        memo: what was copied before.
    """
    if id(function) in memo:
        return memo[id(function)]
    if not _reaches(function, memo):
        return function
    if isinstance(function, types.FunctionType):
        # A cell that two functions have in common is one cell in their copies too.
        cells = tuple(memo.setdefault(id(c), types.CellType()) for c in function.__closure__ or ())
        twin = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, None, cells or None
        )
        memo[id(function)] = twin  # before its cells: it may hold itself
        functools.update_wrapper(twin, function)
        twin.__dict__.pop("__wrapped__", None)
        twin.__dict__.update({k: with_copies(v, memo) for k, v in vars(function).items()})
        twin.__defaults__ = with_copies(function.__defaults__, memo)
        twin.__kwdefaults__ = with_copies(function.__kwdefaults__, memo)
        for cell, theirs in zip(cells, function.__closure__ or (), strict=True):
            if (held := _held(theirs)) is not _EMPTY and _held(cell) is _EMPTY:
                cell.cell_contents = with_copies(held, memo)
        return twin
    if type(function) is tuple:
        return tuple(with_copies(each, memo) for each in function)
    if type(function) is list:
        memo[id(function)] = items = []
        items += [with_copies(each, memo) for each in function]
        return items
    if type(function) is dict:
        table: dict[Any, Any] = {}
        memo[id(function)] = table
        table |= {name: with_copies(each, memo) for name, each in function.items()}
        return table
    if isinstance(function, functools.partial):
        inner = with_copies(function.func, memo)
        if isinstance(function.func, functools.partial):  # as Pyro's handlers hold what they wrap
            return type(function)(inner)
        given = with_copies(function.args, memo), with_copies(function.keywords, memo)
        return type(function)(inner, *given[0], **given[1])
    return copy.deepcopy(function, memo)  # a module, a bound method, an object


_EMPTY = object()


def _held(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return _EMPTY


def _reaches(value: Any, memo: Memo) -> bool:
    """Whether anything that was copied can be reached from a value by what it holds."""
    stack, seen = [value], set()
    while stack:
        each = stack.pop()
        if id(each) in memo:
            if memo[id(each)] is not each:
                return True
        elif id(each) not in seen:
            seen.add(id(each))
            stack.extend(_holds(each))
    return False


def _holds(value: Any) -> Iterator[Any]:
    if isinstance(value, types.FunctionType):
        yield from (held for c in value.__closure__ or () if (held := _held(c)) is not _EMPTY)
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
        yield from vars(value).values()
    elif isinstance(value, types.MethodType):
        yield value.__self__
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, (tuple, list, set, frozenset)):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()
    elif not isinstance(value, (type, types.ModuleType, Tensor)):
        yield from getattr(value, "__dict__", {}).values()


class Watch(TorchFunctionMode):
    """Refuses the tensors of another program, for as long as a copy has not shown that it is whole.

    Args:
        program: the copy.
        others: the tensors of the program that it was copied from; None where that is unknown,
            because it was unpickled: then every parameter that would be trained and is not its own.
    """

    def __init__(self, program: nn.Module, others: list[weakref.ref] | None) -> None:
        super().__init__()
        self._program = program
        self._others: dict[int, Any] | None = None
        if others is not None:  # (alive, or a new tensor could have the place of an old one)
            self._others = {id(t): t for refer in others if (t := refer()) is not None}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in pytree.tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and self._is_another_s(tensor):
                raise ValueError(
                    f"a copy of {type(self._program).__name__} calls a module that is not its own "
                    f"(it met a parameter of shape {tuple(tensor.shape)}), because its model or "
                    "guide finds it by a global name: build each program by itself, "
                    "[build() for _ in range(2)] with a build() that makes the modules and the two "
                    "functions, or write a subclass of pv.Program with the modules as attributes"
                )
        return func(*args, **kwargs)

    def _is_another_s(self, tensor: Tensor) -> bool:
        if self._others is not None:
            return id(tensor) in self._others
        if not (isinstance(tensor, nn.Parameter) and tensor.requires_grad):
            return False
        return all(tensor is not own for own in self._program.parameters())
