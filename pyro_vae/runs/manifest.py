"""What the numbers of a run depend on: data, source, settings and versions, as plain values."""

from __future__ import annotations

import hashlib
import inspect
import platform
import weakref
from typing import Any

import torch
from torch import nn

from pyro_vae.defaults import __version__
from pyro_vae.program.inputs import as_tensor
from pyro_vae.program.rows import Rows
from pyro_vae.recording import Form, Recorded, differences
from pyro_vae.runs.held import is_function, is_plain, object_record, written
from pyro_vae.runs.storage import tensor_digest


def manifest_of(program: nn.Module, x: Any, **settings: Any) -> dict[str, Any]:
    """Everything that a number depends on: plain values, ready for JSON."""
    from importlib.metadata import version

    parameter = next(program.parameters())
    return {
        "program": type(program).__name__,
        "source_digest": source_digest(program),
        "parts": parts_record(program),
        "parameters": sum(p.numel() for p in program.parameters()),
        "data_digest": data_digest(x),
        "binarize": getattr(x, "binarize", None),
        "num_data": len(next(iter(x.values())) if isinstance(x, dict) else x),
        **settings,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device),
        "threads": torch.get_num_threads(),
        "versions": {
            "pyro-vae": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pyro-ppl": version("pyro-ppl"),
        },
    }


def source_digest(program: nn.Module) -> str | None:
    """sha256 of the program as written: its class, its functions and the classes of its parts.

    Parts of torch and what has no source (typed at a prompt) are left out; None where the
    program's own class is among these.
    """
    parts = dict.fromkeys(type(module) for module in program.modules())
    own: list[Any] = [part for part in parts if not part.__module__.startswith("torch.")]
    functions = (getattr(program, name, None) for name in ("_model", "_guide"))
    found = []
    for part in [*own, *(each for each in functions if each is not None)]:
        source = _source_of(part)
        if source is not None:
            found.append(source)
        elif part is type(program):
            return None
    return hashlib.sha256("\0".join(found).encode()).hexdigest()


# Finding a class in its file takes milliseconds.  One that is defined anew is another class.
_sources: weakref.WeakKeyDictionary[type, str | None] = weakref.WeakKeyDictionary()


def _source_of(part: Any) -> str | None:
    if part in _sources:
        return _sources[part]
    try:
        source = inspect.getsource(part)
    except (OSError, TypeError):
        source = None
    if isinstance(part, type):
        _sources[part] = source
    return source


def parts_record(program: nn.Module) -> dict[str, Form]:
    """What each module of a program was made from: recorded arguments, and plain attributes.

    Two programs of one class with tensors of one shape may still differ, by the precision of a
    prior, say.  What a module without a record holds is told as far as it is plain: numbers, texts,
    containers and functions of them, and tensors that no checkpoint keeps.
    """
    return {name or "program": _part(module) for name, module in program.named_modules()}


NOT_ITS_OWN = {
    *vars(nn.Module()),
    "_record",
    "build_record",
    "_unproven",
    "_copied_from",
    "_taken",
    "prototype_trace",  # what Pyro's automatic guides remember of the first rows that they saw
}


def _part(module: nn.Module) -> Form:
    record = vars(module).get("_record") if isinstance(module, Recorded) else None
    arguments = {} if record is None else record["arguments"]
    said: dict[str, Form] = {"class": type(module).__qualname__, **arguments}
    if record is None and not type(module).__module__.startswith("torch."):
        held = {n: v for n, v in sorted(vars(module).items()) if n not in NOT_ITS_OWN}
        held |= {n: module._buffers[n] for n in sorted(module._non_persistent_buffers_set)}
        functions = {n: v for n, v in held.items() if callable(v) and not is_plain(v)}
        constants, code = written(type(module), functions)
        objects = {n: v for n, v in held.items() if not (n in functions and is_function(v))}
        return said | {n: object_record(v) for n, v in (objects | constants).items()} | code
    constants, code = written(type(module), {})
    said |= {n: object_record(v) for n, v in constants.items()} | code
    for name, value in vars(module).items():
        if not is_plain(value) or name.startswith("_") or name in ("training", "build_record"):
            continue
        form = object_record(value)
        if name not in said:
            said[name] = form
        elif differences(said[name], form):  # set since, or turned into something else
            said[f"{name}, as it is held,"] = form
    return said


def data_digest(x: Any) -> str:
    """The digest of a ``Data``; of tensors, arrays and dicts of them, sha256 as they are passed."""
    if isinstance(getattr(x, "digest", None), str):
        return x.digest
    entries = x if isinstance(x, dict) else {"x": x}
    hashed = hashlib.sha256()
    for name, value in sorted(entries.items()):
        hashed.update(tensor_digest(name, as_tensor(value)).encode())
    return hashed.hexdigest()


def form_of(x: Rows) -> dict[str, Any]:
    """dtype and shape of a row, of each entry of a dict."""
    if isinstance(x, dict):
        return {name: form_of(value) for name, value in x.items()}
    return {"dtype": str(x.dtype).removeprefix("torch."), "shape": list(x.shape[1:])}
