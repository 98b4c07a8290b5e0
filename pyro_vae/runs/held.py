"""What an object of any kind works with, told as plain values: attributes, constants and code.

Two objects that differ in what they would compute differ here; two that are made alike, in another
process or from another initialization of their parameters, do not.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution
from torch.distributions.utils import lazy_property
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.recording import (
    KIND,
    PLAIN,
    Form,
    code_of,
    constants_of,
    form_of,
    is_comparable,
    is_users,
    used_by,
)

DEEP = 12  # objects within objects that are looked into
# Those that Pyro's automatic guides remember of the first rows that they saw stand beside.
OF_MODULES = frozenset({*vars(nn.Module()), "prototype_trace"})
FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)


def object_record(
    value: Any, *, without: tuple[str, ...] = (), above: tuple[int, ...] = ()
) -> Form:
    """A value by what it is plainly, or else by class, code and attributes.

    Args:
        value: of any kind.
        without: attributes that do not count.
        above: what it is held by.
    """
    if isinstance(value, type):
        return {KIND: "class", "name": value.__qualname__}  # it may move from file to file
    if isinstance(value, torch.Tensor) and value.requires_grad:
        return {KIND: "tensor", "shape": list(value.shape)}  # which is learnt, and saved
    if is_plain(value) and not _holds_functions(value):
        return form_of(value)
    if id(value) in above or len(above) > DEEP:
        return {KIND: "above", "levels": len(above)}
    into = functools.partial(object_record, without=without, above=(*above, id(value)))
    if type(value) in (list, tuple):
        return type(value)(map(into, value))
    if type(value) is dict and all(type(name) is str for name in value):
        return {name: into(part) for name, part in value.items()}
    said: dict[str, Form] = {"class": type(value).__qualname__}
    if isinstance(value, FUNCTIONS):
        owner = getattr(value, "__self__", None)
        said |= {} if owner is None else {"of": into(owner)}
        said |= {} if is_users(value) else {"name": _name(value)}
        held: dict[str, Any] = {_name(value): value}
    else:
        held = {}
        for name, part in _attributes(value).items():
            if name not in without:
                said[name] = into(part)
    constants, code = written(type(value), held)
    said |= {name: into(part) for name, part in constants.items()} | code
    if isinstance(value, dict):
        said |= {"entries": [(into(name), into(part)) for name, part in value.items()]}
    elif isinstance(value, (list, tuple)):
        said |= {"entries": into(list(value))}
    if len(said) > 1 or isinstance(value, (nn.Module, torch.optim.Optimizer)):
        return said
    form = form_of(value)  # of a class in C, or one that keeps all to itself
    return form if is_comparable(form) else said


def is_function(value: Any) -> bool:
    """Whether it is all code: no object that a method is bound to, or that can be called."""
    return isinstance(value, types.FunctionType)


def _holds_functions(value: Any) -> bool:
    if isinstance(value, (dict, list, tuple, set)):
        return any(map(_holds_functions, value.values() if isinstance(value, dict) else value))
    return is_function(value)


def _name(function: Any) -> str:
    return getattr(function, "__name__", "") or _name(getattr(function, "func", type(function)))


def _attributes(value: Any) -> dict[str, Any]:
    """Those that decide something: not what is computed from others and remembered."""
    held: dict[str, Any] = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        for name in getattr(cls, "__slots__", ()):
            if isinstance(name, str) and hasattr(value, name):
                held.setdefault(name, getattr(value, name))
    if isinstance(value, nn.Module):  # `parts_record` tells what it consists of
        return {n: v for n, v in held.items() if n not in OF_MODULES and n[:1] != "_"}
    found = {}
    for name, part in sorted(held.items()):
        kind = inspect.getattr_static(type(value), name, None)
        private = name.startswith("_") and not is_users(type(value))
        if isinstance(value, LRScheduler):
            private = False
        elif isinstance(value, Distribution):
            private = name.startswith("_") and not isinstance(part, torch.Tensor)
        elif isinstance(value, torch.optim.Optimizer):
            private = name.startswith("_")
        if not private and not isinstance(kind, (lazy_property, functools.cached_property)):
            found[name] = part
    return found


def written(cls: type, held: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Form]]:
    """What a user's class, its methods and the functions ``held`` work with and do, by name.

    Functions and classes of the user's that these name are followed, as far as a closure, a global
    name or one of a module of theirs leads to them.
    """
    found: dict[str, Any] = {}
    code: dict[str, Form] = {}
    todo: list[tuple[str, Any]] = [(n.lstrip("_"), v) for n, v in held.items() if callable(v)]
    todo += [("", each) for each in cls.__mro__ if is_users(each)]
    followed = set()
    for name, value in todo:  # which grows on the way
        if isinstance(value, type):
            if id(value) in followed or not is_users(value):
                continue
            followed.add(id(value))
            todo += [(each.__name__, each) for each in value.__mro__[1:]]
            for n, part in vars(value).items():
                said = f"{name}.{n}" if name else n
                function = getattr(part, "fget", None) or getattr(part, "__func__", part)
                if isinstance(function, types.FunctionType):
                    todo.append((said, function))
                elif not (n.startswith("_") or callable(part) or hasattr(part, "__get__")):
                    _add(found, f"{said}, of the class,", part)
            continue
        function = inspect.unwrap(value)
        if isinstance(function, functools.partial):
            todo.append((name, function.func))
        function = getattr(function, "__func__", function)
        if id(function) in followed:
            continue
        followed.add(id(function))
        if isinstance(function, types.FunctionType) and is_users(function):
            _add(code, f"what {name} does", code_of(function))
        for n, constant in constants_of(function).items():
            closure = isinstance(constant, types.FunctionType) and not is_plain(constant)
            if closure or isinstance(constant, type):
                todo.append((n, constant))
            else:
                _add(found, f"{n}, as {name} has it,", constant)
        todo += used_by(function).items()
    return found, code


def _add(table: dict[str, Any], name: str, value: Any) -> None:
    """Under its name, or beside another one of that name: a method and that of the base class."""
    number, free = 1, name
    while free in table:
        number += 1
        free = f"{name} ({number})"
    table[free] = value


def content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


def is_plain(value: Any, above: int = 0) -> bool:
    """Whether a value says the same in another process: it holds no module and no object."""
    if above > DEEP:  # a circle, it may be
        return False
    inner = functools.partial(is_plain, above=above + 1)
    if isinstance(value, (list, tuple, set)):
        return all(map(inner, value))
    if isinstance(value, dict):
        return all(inner(name) and inner(part) for name, part in value.items())
    if isinstance(value, types.FunctionType):
        cells = [content(cell) for cell in value.__closure__ or ()]
        return all(map(inner, [*cells, value.__defaults__ or (), value.__kwdefaults__ or {}]))
    constant = isinstance(value, torch.Tensor) and not value.requires_grad
    return type(value) in PLAIN or constant or isinstance(value, types.BuiltinFunctionType)


def optimizer_record(optimizer: torch.optim.Optimizer, parameters: dict[str, torch.Tensor]) -> Form:
    """Which parameters each group moves, and what else an optimizer of the user's works with."""
    names = {id(p): name for name, p in parameters.items()}
    groups = [[names.get(id(p), "") for p in group["params"]] for group in optimizer.param_groups]
    held = object_record(optimizer, without=("param_groups", "state", "defaults", "step"))
    return {"parameters": groups, **(held if isinstance(held, dict) else {})}


def objective_code(objective: Any) -> Form:
    """What the functions of an objective do, and the whole of one of the user's own class."""
    if is_users(type(objective)):
        ours = ("_record", "_made", "_memory", "_calls", "max_plate_nesting")
        return object_record(objective, without=ours)
    held = vars(objective).items()
    return {name: object_record(part) for name, part in held if isinstance(part, FUNCTIONS)}
