r"""Values of any kind as plain ones.

Numbers, strings, and lists, tuples and dicts of them are kept as they are.  Anything else becomes
a dict whose entry ``"!"`` says what it was:

============ =====================================================================================
made         an object that is recorded itself: its class and its arguments; and, of a module, a
             digest of its values
class, name  a class, a function of C, a member of an enum, a dtype: by qualified name
tensor       dtype, shape and a digest of its values; an array alike
module       a ``torch.nn.Module`` without a record: class, structure, digest of its values
function     digest of its bytecode, defaults, what it closes over, and the plain globals that it
             names.  What the functions that it calls do is not looked into
object       digest of what pickle would write of it
incomparable what pickle refuses.  It equals nothing, itself included
============ =====================================================================================
"""

from __future__ import annotations

import ast
import dis
import enum
import functools
import hashlib
import inspect
import json
import pathlib
import platform
import sys
import textwrap
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Form = Any  # None, bool, int, float, str, or list, tuple or dict[str, Form]

KIND = "!"
MOST = 4000  # characters of a value that is kept as it is; a digest stands for a longer one
PLAIN = (type(None), bool, int, float, str)


def qualified(cls: Any) -> str:
    """``module.Class``: its name wherever it was imported from."""
    return f"{cls.__module__}.{cls.__qualname__}"


def form_of(value: Any) -> Form:
    """A value as plain ones, which can be compared, written and shown."""
    try:
        form = _form(value, ())
        if len(_text(form)) <= MOST:
            return form
        return {KIND: "object", "class": qualified(type(value)), "sha256": _digest(form)}
    except Exception as error:  # of the user's own __reduce__, __getattr__, ...
        why = (str(error).splitlines() or [""])[0]
        return {KIND: "incomparable", "class": qualified(type(value)), "why": why}


def _form(value: Any, above: tuple[int, ...]) -> Form:
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in PLAIN:
        return value
    if id(value) in above:  # a circle
        return {KIND: "above", "levels": len(above) - above.index(id(value))}
    into = functools.partial(_form, above=(*above, id(value)))
    if type(value) in (list, tuple):
        return type(value)(map(into, value))
    if type(value) is dict:
        if all(type(name) is str for name in value) and KIND not in value:
            return {name: into(part) for name, part in value.items()}
        return {KIND: "dict", "items": [(into(name), into(part)) for name, part in value.items()]}
    record = getattr(value, "__dict__", {}).get("_record")
    if isinstance(record, dict) and record.get(KIND) == "made" and not isinstance(value, type):
        return {**record, "sha256": _values(value)} if isinstance(value, nn.Module) else record
    if isinstance(value, (set, frozenset)):
        return {KIND: type(value).__name__, "items": sorted(map(into, value), key=_text)}
    if isinstance(value, (Tensor, np.ndarray)):
        return _tensor(value)
    if isinstance(value, (enum.Enum, torch.dtype, torch.device, pathlib.PurePath)):
        return {KIND: "name", "name": str(value)}
    if isinstance(value, type):
        return {KIND: "class", "name": qualified(value)}
    if isinstance(value, nn.Module):
        return _module(value)
    if isinstance(value, types.FunctionType):
        return _function(value, into)
    if isinstance(value, types.BuiltinFunctionType) and not _is_bound(value):
        owner = value.__module__ or qualified(type(value.__self__))
        return {KIND: "name", "name": f"{owner}.{value.__qualname__}"}
    return _object(value, into)


def _is_bound(function: Any) -> bool:
    owner = function.__self__
    return not (owner is None or isinstance(owner, (types.ModuleType, type)))


def _tensor(value: Tensor | np.ndarray) -> Form:
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        raise TypeError("an array of objects has no bytes to compare")
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        raw, kind = flat.view(torch.uint8).numpy().tobytes(), "tensor"
    else:
        raw, kind = np.ascontiguousarray(value).tobytes(), "array"
    return {
        KIND: kind,
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": list(value.shape),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }


def _module(module: nn.Module) -> Form:
    return {
        KIND: "module",
        "class": qualified(type(module)),
        "structure": _sha256(repr(module)),
        "sha256": _values(module),
    }


def _values(module: nn.Module) -> str:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return _digest([(name, _tensor(value)) for name, value in tensors])


def _function(function: types.FunctionType, into: Any) -> Form:
    code = function.__code__
    seen = function.__globals__
    parts = {
        "code": _code(code, into),
        "defaults": [into(function.__defaults__), into(function.__kwdefaults__)],
        "closure": [into(_content(cell)) for cell in function.__closure__ or ()],
        "globals": {n: seen[n] for n in sorted(_names(code)) if type(seen.get(n)) in PLAIN[1:]},
    }
    version = ".".join(platform.python_version_tuple()[:2])  # bytecode is that of one version
    return {
        KIND: "function",
        "name": f"{function.__module__}.{function.__qualname__}",
        "python": version,
        "sha256": _digest(parts),
    }


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


def _names(code: types.CodeType) -> set[str]:
    """The global names that it reads."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    read = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    return read.union(*map(_names, inner))


def constants_of(function: Any) -> dict[str, Any]:
    """What a function works with besides its arguments, by name: closure, defaults, globals.

    Of globals those that are plain values; of anything but a function, a method or a
    ``functools.partial`` nothing.
    """
    if isinstance(function, functools.partial):
        given = {f"argument {i}": value for i, value in enumerate(function.args)}
        return {**constants_of(function.func), **given, **function.keywords}
    if isinstance(function, types.MethodType):
        return constants_of(function.__func__)
    if not isinstance(function, types.FunctionType):
        return {}
    code, seen = function.__code__, function.__globals__
    defaults = function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    cells = zip(code.co_freevars, map(_content, function.__closure__ or ()), strict=True)
    return {
        **{n: seen[n] for n in sorted(_names(code)) if type(seen.get(n)) in PLAIN[1:]},
        **dict(cells),
        **dict(zip(names, defaults, strict=True)),
        **(function.__kwdefaults__ or {}),
    }


def functions_called_by(function: Any) -> list[types.FunctionType]:
    """The functions of the user's own files whose global names a function reads."""
    if not isinstance(function, types.FunctionType):
        return []
    seen = function.__globals__
    named = [seen.get(name) for name in sorted(_names(function.__code__))]
    return [f for f in named if isinstance(f, types.FunctionType) and is_users(f)]


def is_users(value: Any) -> bool:
    """Whether a function or a class is of the user's own files, as far as its module tells."""
    top = str(value.__module__).partition(".")[0]
    file = getattr(getattr(value, "__code__", None), "co_filename", "")
    ours = top in ("torch", "pyro", "pyro_vae") or top in sys.stdlib_module_names - {"__main__"}
    return not ours and "site-packages" not in file


def code_of(function: types.FunctionType) -> Form:
    """What a function does, by its source without comments; by its bytecode where that is all."""
    try:
        source = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function))))
        version = ""
    except (OSError, TypeError, SyntaxError):
        source = _text(_code(function.__code__, functools.partial(_form, above=())))
        version = ".".join(platform.python_version_tuple()[:2])
    return {
        KIND: "function",
        "name": function.__qualname__,  # it may move from file to file
        "python": version,
        "sha256": _sha256(source),
    }


def _code(code: types.CodeType, into: Any) -> Form:
    constants = [
        _code(c, into) if isinstance(c, types.CodeType) else into(c) for c in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), constants]


def _object(value: Any, into: Any) -> Form:
    """By what pickle would write: a function, its arguments, and a state."""
    if isinstance(value, (bytes, bytearray)):
        content: Any = value.hex()
    else:
        content = value.__reduce_ex__(4)
        if isinstance(content, str):  # a global name
            return {KIND: "name", "name": f"{value.__module__}.{content}"}
        maker, arguments, *rest = content
        state, items, entries = [*rest, None, None, None][:3]
        content = [
            qualified(maker),
            into(arguments),
            into(state),
            into(list(items or ())),
            into(list(entries or ())),
        ]
    return {KIND: "object", "class": qualified(type(value)), "sha256": _digest(content)}


def _text(form: Form) -> str:
    return json.dumps(form, sort_keys=True)


def is_comparable(form: Form) -> bool:
    """Whether nothing in it is "incomparable"."""
    return f'"{KIND}": "incomparable"' not in _text(form)


def _digest(form: Form) -> str:
    if not is_comparable(form):
        raise TypeError("it holds what cannot be compared")
    return _sha256(_text(form))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def same(mine: Form, theirs: Form) -> bool:
    """Equal, where True is not 1 and nan is nan."""
    if all(type(value) in (int, float) for value in (mine, theirs)):
        return mine == theirs or (mine != mine and theirs != theirs)
    return type(mine) is type(theirs) and mine == theirs
