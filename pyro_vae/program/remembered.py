"""What the Python of a program holds besides tensors: numbers, texts and flags.

A graph freezes them.  So one is made only of programs that leave them alone when they run, and is
compared with its program again when somebody else has changed one.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

from torch import nn

from pyro_vae.recording import is_users

SIMPLE = (type(None), bool, int, float, str)
OF_TORCH = frozenset(vars(nn.Module()))
MOST = 100  # entries of a container that are looked at


def remembered(program: nn.Module) -> dict[str, Any]:
    """The plain values that a program's own modules and functions hold, by a name for each."""
    found: dict[str, Any] = {}
    functions: dict[int, types.FunctionType] = {}
    for name, module in program.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, types.FunctionType):
                functions[id(value)] = value
            elif key not in OF_TORCH and is_users(type(module)) and _is_simple(value):
                found[f"{name or type(program).__name__}.{key}"] = _copied(value)
        for cls in type(module).__mro__:
            if is_users(cls):
                own = (v for v in vars(cls).values() if isinstance(v, types.FunctionType))
                functions |= {id(each): each for each in own}
    for function in functions.values():
        if is_users(function):
            found |= {name: _copied(v) for name, v in _outer(function) if _is_simple(v)}
    return found


def fixed_tensors(program: nn.Module) -> dict[str, Any]:
    """What tells whether somebody has written into a buffer or a frozen parameter, and which train.

    A graph reads them where they are, and machine code has copies of them.
    """
    tensors = {**dict(program.named_buffers()), **dict(program.named_parameters())}
    return {
        name: "trained" if t.requires_grad else f"tensor {id(t)}, version {t._version}"
        for name, t in tensors.items()
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What differs, in words; empty where nothing does."""
    for name, value in after.items():
        if name not in before or not _equal(before[name], value):
            return f"{name} ({before.get(name)!r}, then {value!r})"
    return ""


def put_back(program: nn.Module, before: dict[str, Any]) -> None:
    """Let the attributes of its modules be what they were."""
    for name, module in program.named_modules():
        prefix = f"{name or type(program).__name__}."
        for key in list(vars(module)):
            if prefix + key in before and not _equal(before[prefix + key], vars(module)[key]):
                vars(module)[key] = _copied(before[prefix + key])


def _outer(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The variables of a closure, and global ones, that a function names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"{function.__qualname__}: {name}", cell.cell_contents
        except ValueError:  # nothing in it yet
            continue
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f"{function.__module__}.{name}", function.__globals__[name]


def _is_simple(value: Any) -> bool:
    if isinstance(value, dict):
        return len(value) <= MOST and all(map(_is_simple, (*value, *value.values())))
    if isinstance(value, (list, tuple)):
        return len(value) <= MOST and all(map(_is_simple, value))
    return type(value) in SIMPLE


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a == b or repr(a) == repr(b))  # nan is nan
