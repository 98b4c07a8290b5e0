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
import contextlib
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
        # A copy: one number that was expanded counts as contiguous, and has no step of bytes.
        flat = value.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1)
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
    parts = {
        "code": _code(code, into),
        "defaults": [into(function.__defaults__), into(function.__kwdefaults__)],
        "closure": [into(_content(cell)) for cell in function.__closure__ or ()],
        "globals": {n: v for n, v in _read_by(function).items() if type(v) in PLAIN[1:]},
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


def _read_by(function: types.FunctionType) -> dict[str, Any]:
    """What its global names stand for, by name, also ``mine.name`` of a module ``mine``."""
    found: dict[str, Any] = {}
    codes = [function.__code__]
    for code in codes:
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
        path = ""
        for step in dis.get_instructions(code):
            value = found.get(path)
            if step.opname == "LOAD_GLOBAL" and step.argval in function.__globals__:
                path = step.argval
                found[path] = function.__globals__[path]
            elif (
                step.opname in ("LOAD_ATTR", "LOAD_METHOD")
                and isinstance(value, types.ModuleType)
                and is_users(value)
                and hasattr(value, step.argval)
            ):
                path = f"{path}.{step.argval}"
                found[path] = getattr(value, step.argval)
            else:
                path = ""
    return {name: found[name] for name in sorted(found)}


def constants_of(function: Any) -> dict[str, Any]:
    """What a function works with besides its arguments, by name: closure, defaults, globals.

    Of globals those that are values; of anything but a function, a method or a
    ``functools.partial`` nothing.
    """
    if isinstance(function, functools.partial):
        given = {f"argument {i}": value for i, value in enumerate(function.args)}
        owner = getattr(function.func, "__self__", None)
        given |= {} if owner is None or isinstance(owner, types.ModuleType) else {"of": owner}
        return {**constants_of(function.func), **given, **function.keywords}
    if isinstance(function, types.MethodType):
        return constants_of(function.__func__)
    if not isinstance(function, types.FunctionType):
        return {}
    code = function.__code__
    defaults = function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    cells = zip(code.co_freevars, map(_content, function.__closure__ or ()), strict=True)
    return {
        **{name: value for name, value in _read_by(function).items() if _is_value(value)},
        **dict(cells),
        **dict(zip(names, defaults, strict=True)),
        **(function.__kwdefaults__ or {}),
    }


def _is_value(value: Any) -> bool:
    """Whether a global is one that decides something: no code, no module of torch, no library's."""
    if value is None or isinstance(value, (types.FunctionType, type, nn.Module)):
        return False
    plain = (*PLAIN, list, tuple, dict, set, frozenset, Tensor, np.ndarray, types.SimpleNamespace)
    return isinstance(value, (*plain, functools.partial)) or (
        not isinstance(value, types.ModuleType) and is_users(type(value))
    )


def used_by(function: Any) -> dict[str, types.FunctionType | type]:
    """The functions and classes of the user's own files whose global names a function reads."""
    if not isinstance(function, types.FunctionType):
        return {}
    kinds = (types.FunctionType, type)
    return {n: v for n, v in _read_by(function).items() if isinstance(v, kinds) and is_users(v)}


def is_users(value: Any) -> bool:
    """Whether a function, class or module is of the user's own files, as far as it tells."""
    name = value.__name__ if isinstance(value, types.ModuleType) else str(value.__module__)
    top = name.partition(".")[0]
    code, module = getattr(value, "__code__", None), sys.modules.get(name)
    file = getattr(code, "co_filename", "")
    if not file and name != "__main__":  # which a library may have begun, for a user's file
        file = getattr(module, "__file__", "") or ""
    ours = top in ("torch", "pyro", "pyro_vae") or top in sys.stdlib_module_names - {"__main__"}
    return not ours and "site-packages" not in file and "dist-packages" not in file


def code_of(function: types.FunctionType) -> Form:
    """What a function does: its bytecode, and its source without comments where there is one.

    Of a lambda the source would be the whole of the line on which it stands.
    """
    source = ""
    if function.__name__ != "<lambda>":
        with contextlib.suppress(OSError, TypeError, SyntaxError):
            written = ast.parse(textwrap.dedent(inspect.getsource(function)))
            source = _sha256(ast.unparse(written))
    return {
        KIND: "function",
        "name": function.__qualname__,  # it may move from file to file
        "python": ".".join(platform.python_version_tuple()[:2]),
        "source": source,
        "sha256": _sha256(_text(_code(function.__code__, functools.partial(_form, above=())))),
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
            return {KIND: "name", "name": f"{getattr(value, '__module__', 'builtins')}.{content}"}
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
