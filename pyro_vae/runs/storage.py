"""Plain values and tensors in a folder, written so that they are whole or refused.

Two files: a manifest in JSON, and the tensors that it names in safetensors, with a sha256 of each
tensor and one of the manifest itself.  Nothing is pickled, and reading runs no code of the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor


def tensor_digest(name: str, value: Tensor) -> str:
    """sha256 over name, dtype, shape and bytes."""
    hashed = hashlib.sha256(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
    flat = value.detach().cpu().contiguous().reshape(-1)
    hashed.update(flat.view(torch.uint8).numpy().data)
    return hashed.hexdigest()


FORMAT = 2
MANIFEST = "checkpoint.json"


def write(folder: Path, content: dict[str, Any]) -> None:
    """Replace what ``folder`` holds; a crash at any moment leaves the old or the new content.

    Raises:
        ValueError: a value that is no tensor, number, string, or list, tuple or dict of them.
        OSError: the disk refuses; what was there before can still be read.
    """
    tensors: dict[str, Tensor] = {}
    packed = pack(content, "", tensors)
    table = {
        name: {
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "sha256": tensor_digest(name, value),
        }
        for name, value in tensors.items()
    }
    try:
        raw = safetensors.torch.save(tensors)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"safetensors cannot hold these tensors: {error}") from None
    # Named by its content: the file that the manifest in place names is never changed.
    file = f"tensors-{_digest(table)[:16]}.safetensors"
    body = {"format": FORMAT, **packed, "tensors_file": file, "bytes": len(raw), "tensors": table}
    body["sha256"] = _digest(body)
    _replace(folder / file, raw)
    lines = (f"{json.dumps(name)}: {json.dumps(part)}" for name, part in body.items())
    _replace(folder / MANIFEST, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
    for old in folder.glob("tensors-*"):
        if old.name != file:
            old.unlink(missing_ok=True)


def read(folder: Path) -> dict[str, Any]:
    """The content that :func:`write` was given, its tensors on the CPU.

    Raises:
        ValueError: nothing is there, or something is damaged: by file and tensor.
    """
    path = folder / MANIFEST
    if path.exists() and not path.is_file():  # a pipe or a device has no end
        raise _damaged(path, "is no regular file")
    try:
        body = json.loads(path.read_bytes())
        digest = body.pop("sha256")
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no {MANIFEST}: name a folder that was out= of pv.fit, or that "
            "Run.save has written"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(path, "is no whole JSON object") from None
    if body.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {body.get('format')}, expected {FORMAT}: read it with the version "
            "of pyro_vae that wrote it"
        )
    if digest != _digest(body):
        raise _damaged(path, "differs from its own sha256")
    for extra in ("format", "bytes"):
        size = body.pop(extra)
    tensors = _read_tensors(folder / Path(body.pop("tensors_file")).name, size, body.pop("tensors"))
    return unpack(body, tensors)


def _read_tensors(path: Path, size: int, table: dict[str, Any]) -> dict[str, Tensor]:
    if path.exists() and not path.is_file():
        raise _damaged(path, "is no regular file")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise _damaged(path, "is missing") from None
    try:
        # Copies, in memory that torch has aligned.
        tensors = {name: t.clone() for name, t in safetensors.torch.load(raw).items()}
    except (SafetensorError, KeyError, ValueError) as error:
        which = _first_cut_off(raw) or str(error)
        raise _damaged(path, f"has {len(raw)} bytes, expected {size}: {which}") from None
    for name in {**table, **tensors}:
        if name not in tensors:
            raise _damaged(path, f'holds no tensor "{name}"')
        if name not in table:
            raise _damaged(path, f'holds a tensor "{name}" that the manifest does not know')
        value, expected = tensors[name], table[name]
        if list(value.shape) != expected["shape"]:
            found = f"has shape {list(value.shape)}, expected {expected['shape']}"
            raise _damaged(path, f'tensor "{name}" {found}')
        if tensor_digest(name, value) != expected["sha256"]:
            raise _damaged(path, f'tensor "{name}" differs from its sha256')
    return tensors


def _first_cut_off(raw: bytes) -> str:
    """Which tensor of a truncated file is the first that is not whole, if its header still is."""
    try:
        start = 8 + int.from_bytes(raw[:8], "little")
        ends = {n: e["data_offsets"][1] for n, e in json.loads(raw[8:start]).items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return ""
    cut = [name for name in sorted(ends, key=ends.__getitem__) if start + ends[name] > len(raw)]
    return f'it ends within tensor "{cut[0]}"' if cut else ""


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} {what}, so it is damaged: take a copy of it, or begin anew")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _replace(path: Path, raw: bytes) -> None:
    """Write beside ``path``, bring it to the disk, rename, and bring the new name to the disk."""
    beside = path.with_name(path.name + ".tmp")
    try:
        with open(beside, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- values as JSON -----------------------------------------------------------------------------
# JSON has no tensors, tuples, infinities or numbers as names.  They are written as an object with
# one name that begins with "$": {"$tensor": "optimizer/state/0/sum"}, {"$tuple": [0.9, 0.999]}.


def pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON, its tensors in ``tensors`` under the path at which they stand."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"$tensor": path}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, (list, tuple)):
        items = [pack(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        names = {name: f"{path}/{name}".removeprefix("/") for name in value}
        parts = [(name, pack(part, names[name], tensors)) for name, part in value.items()]
        if isinstance(value, Counter):
            return {"$counter": parts}
        if all(isinstance(name, str) and not name.startswith("$") for name in value):
            return dict(parts)
        return {"$dict": parts}
    raise ValueError(
        f"{path} is a {type(value).__name__}, which a checkpoint cannot hold: expected tensors, "
        "numbers, strings, and lists, tuples and dicts of them"
    )


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What :func:`pack` was given."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match next(iter(value.items()), None):
        case "$tensor", name:
            return tensors[name]
        case "$float", text:
            return float(text)
        case "$tuple", items:
            return tuple(unpack(items, tensors))
        case "$counter", parts:
            return Counter(dict(unpack(parts, tensors)))
        case "$dict", parts:
            return dict(unpack(parts, tensors))
    return {name: unpack(part, tensors) for name, part in value.items()}
