"""Plain values and tensors in a folder, written so that they are whole or refused.

Two files: a manifest in JSON, and the tensors that it names in safetensors, with a sha256 of each
tensor and one of the manifest itself.  Nothing is pickled, and reading runs no code of the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pyro_vae.program.stored import begun_digest
from pyro_vae.runs.values import pack, require_depth, unpack


def tensor_digest(name: str, value: Tensor) -> str:
    """sha256 over name, dtype, shape and bytes."""
    hashed = begun_digest(name, value.dtype, tuple(value.shape))
    flat = value.detach().cpu().contiguous().reshape(-1)
    if flat.stride() != (1,):  # one number that was expanded
        flat = flat.clone(memory_format=torch.contiguous_format)
    hashed.update(flat.view(torch.uint8).numpy().data)
    return hashed.hexdigest()


FORMAT = 2
MANIFEST = "checkpoint.json"
OWN = re.compile(r"tensors-[0-9a-f]{16}\.safetensors")  # what a save may write, and delete

# A manifest is parsed whole, and JSON grows by this: so many bytes and values take 150 MB.
MOST_BYTES = 24 << 20
MOST_VALUES = 400_000
MOST_NESTED = 60
MOST_READS = 1000  # while saves go on


def write(folder: Path, content: dict[str, Any]) -> None:
    """Replace what ``folder`` holds; a crash at any moment leaves the old or the new content.

    The tensors of the content before stay for one save more, for those who read meanwhile.  No
    other file is deleted.

    Raises:
        ValueError: a value that is no tensor, number, string, or list, tuple or dict of them; or
            more of them than :func:`read` would take.
        OSError: the disk refuses; what was there before can still be read.
    """
    tensors: dict[str, Tensor] = {}
    packed = pack(content, "", tensors)
    table = _table(tensors)
    try:
        raw = safetensors.torch.save(tensors)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"safetensors cannot hold these tensors: {error}") from None
    file = _name_of(table)
    last, oldest = _named_by(folder)
    before = oldest if last == file else last
    body = {"format": FORMAT, **packed, "tensors_file": file, "bytes": len(raw), "tensors": table}
    body |= {} if before is None else {"file_before": before}
    body["sha256"] = _digest(body)
    lines = (f"{json.dumps(name)}: {json.dumps(part)}" for name, part in body.items())
    text = ("{\n" + ",\n".join(lines) + "\n}\n").encode()
    if why := _too_large(text):
        raise ValueError(f"{folder / MANIFEST} would have {why}, which cannot be read again")
    if oldest not in (None, file, before):  # there is room for two at a time
        (folder / oldest).unlink(missing_ok=True)
    replace(folder / file, raw)
    replace(folder / MANIFEST, text)


def _table(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        name: {
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "sha256": tensor_digest(name, value),
        }
        for name, value in tensors.items()
    }


def _name_of(table: dict[str, Any]) -> str:
    """By the content, so that the file which the manifest in place names is never changed."""
    return f"tensors-{_digest(dict(sorted(table.items())))[:16]}.safetensors"


def _named_by(folder: Path) -> tuple[str | None, str | None]:
    """The files of tensors that the manifest in place names: its own, and the one before."""
    try:
        body = _parsed(folder / MANIFEST)
    except (OSError, ValueError):
        return None, None
    named = (body.get(name) for name in ("tensors_file", "file_before"))
    last, oldest = (n if isinstance(n, str) and OWN.fullmatch(n) else None for n in named)
    return last, oldest


def tidy(folder: Path) -> None:
    """Remove what a save left that was killed: files under the names that saves give.

    Tensors are ours where no manifest names them and their name is that of their content.
    """
    named = _named_by(folder)
    for path in [*folder.glob("tensors-*"), folder / f"{MANIFEST}.tmp"]:
        whole = OWN.fullmatch(path.name)
        part = path.suffix == ".tmp" and (OWN.fullmatch(path.stem) or path.stem == MANIFEST)
        with contextlib.suppress(OSError, ValueError, SafetensorError):
            if part or (whole and path.name not in named and path.name == _name_by_content(path)):
                path.unlink(missing_ok=True)


def _name_by_content(path: Path) -> str:
    return _name_of(_table(safetensors.torch.load(read_regular(path, path.stat().st_size))))


def read(folder: Path) -> dict[str, Any]:
    """The content that :func:`write` was given, its tensors on the CPU.

    While another process saves there, it is the old content or the new.

    Raises:
        ValueError: nothing is there, or something is damaged: by file and tensor.
    """
    path = folder / MANIFEST
    text = _manifest_text(path)
    for _ in range(MOST_READS):
        try:
            return _read(path, text)
        except ValueError:  # a save may have replaced the tensors meanwhile
            now = _manifest_text(path)
            if now == text:
                raise
            text = now
    raise ValueError(f"{path} is saved too often to be read: wait until the run has ended")


def _manifest_text(path: Path) -> bytes:
    try:
        return read_regular(path, MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{path.parent} holds no {MANIFEST}: name a folder that was out= of pv.fit, or that "
            "Run.save has written"
        ) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _parsed(path: Path, text: bytes | None = None) -> dict[str, Any]:
    """A manifest as it is written; raises ValueError where it is none."""
    text = read_regular(path, MOST_BYTES) if text is None else text
    if why := _too_large(text):
        raise _damaged(path, f"has {why}")
    try:
        body = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise _damaged(path, "is no whole JSON object")
    return body


def _no_number(name: str) -> None:
    raise ValueError(name)


def _too_large(text: bytes) -> str:
    """What of a manifest is more than is read, before it is parsed."""
    if len(text) > MOST_BYTES:
        return f"more than {MOST_BYTES >> 20} MiB"
    values = text.count(b",") + text.count(b"[") + text.count(b"{")
    if values > MOST_VALUES:
        return f"about {values} values, expected at most {MOST_VALUES}"
    return ""


def _read(path: Path, text: bytes) -> dict[str, Any]:
    body = _parsed(path, text)
    digest = body.pop("sha256", None)
    if digest is None:
        raise _damaged(path, "is no whole JSON object")
    if body.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {str(body.get('format'))[:20]}, expected {FORMAT}: read it with "
            "the version of pyro_vae that wrote it"
        )
    try:
        if digest != _digest(body):
            raise _damaged(path, "differs from its own sha256")
        body.pop("format")
        body.pop("file_before", None)
        size, file, table = (body.pop(name) for name in ("bytes", "tensors_file", "tensors"))
        _require_table(size, file, table)
        require_depth(body, MOST_NESTED)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise _damaged(path, f"is not what a save writes ({_short(error)})") from None
    tensors = _read_tensors(path.parent / file, size, table)
    try:
        return unpack(body, tensors)
    except (KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise _damaged(path, f"is not what a save writes ({_short(error)})") from None


def _short(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    said = f"no {error}" if isinstance(error, KeyError) else str(error)
    return (said.splitlines() or [type(error).__name__])[0][:200]


def _require_table(size: Any, file: Any, table: Any) -> None:
    if not (isinstance(file, str) and OWN.fullmatch(file)):
        raise ValueError(f"it names the tensors {str(file)[:50]!r}")
    if type(size) is not int or not isinstance(table, dict):
        raise ValueError("it has no table of tensors")
    for name, entry in table.items():
        shape = entry["shape"]
        if not (isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)):
            raise ValueError(f"tensor {name[:80]!r} has no shape")
        if not (isinstance(entry["dtype"], str) and isinstance(entry["sha256"], str)):
            raise ValueError(f"tensor {name[:80]!r} has no dtype or digest")


def _read_tensors(path: Path, size: int, table: dict[str, Any]) -> dict[str, Tensor]:
    try:
        raw = read_regular(path, size + (1 << 20))  # enough to tell what is too much
        there = path.stat().st_size
    except FileNotFoundError:
        raise _damaged(path, "is missing") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    header = int.from_bytes(raw[:8], "little")
    try:
        if header > _most_of_header(table) + (1 << 16):
            raise ValueError("its table is not that of the manifest")
        # Copies, in memory that torch has aligned.
        tensors = {name: t.clone() for name, t in safetensors.torch.load(raw).items()}
    except (SafetensorError, KeyError, ValueError) as error:
        which = (header < MOST_BYTES and _first_cut_off(raw)) or _short(error)
        raise _damaged(path, f"has {there} bytes, expected {size}: {which}") from None
    for name in {**table, **tensors}:
        if name not in tensors:
            raise _damaged(path, f'holds no tensor "{name}"')
        if name not in table:
            raise _damaged(path, f'holds a tensor "{name}" that the manifest does not know')
        value, expected = tensors[name], table[name]
        if (dtype := str(value.dtype).removeprefix("torch.")) != expected["dtype"]:
            kinds = f"holds {dtype}, expected {expected['dtype'][:20]!r}"
            raise _damaged(path, f'tensor "{name}" {kinds}')
        if list(value.shape) != expected["shape"]:
            shapes = f"has shape {list(value.shape)}, expected {expected['shape']}"
            raise _damaged(path, f'tensor "{name}" {shapes}')
        if tensor_digest(name, value) != expected["sha256"]:
            raise _damaged(path, f'tensor "{name}" differs from its sha256')
    if there != size:
        raise _damaged(path, f"has {there} bytes, expected {size}")
    return tensors


def _most_of_header(table: dict[str, Any]) -> int:
    """Bytes that the names, forms and places of these tensors may take."""
    return 1024 + sum(
        len(json.dumps(name)) + 256 + 24 * len(entry["shape"]) for name, entry in table.items()
    )


def _first_cut_off(raw: bytes) -> str:
    """Which tensor of a truncated file is the first that is not whole, if its header still is."""
    try:
        start = 8 + int.from_bytes(raw[:8], "little")
        ends = {n: e["data_offsets"][1] for n, e in json.loads(raw[8:start]).items()}
        cut = [name for name in sorted(ends, key=ends.__getitem__) if start + ends[name] > len(raw)]
    except Exception:  # a header may be damaged in any way
        return ""
    return f'it ends within tensor "{cut[0]}"' if cut else ""


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} {what}, so it is damaged: take a copy of it, or begin anew")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_regular(path: Path, most: int) -> bytes:
    """The bytes of a regular file, at most one more than ``most`` of them.

    A pipe or a device, which has no end, is refused before it is read, also behind a link.

    Raises:
        ValueError: it is no regular file.
        OSError: it is not there, or cannot be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:  # a socket, or a device that nobody serves
        if error.errno in (errno.ENXIO, errno.ELOOP, errno.EISDIR):
            raise _damaged(path, "is no regular file") from None
        raise
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _damaged(path, "is no regular file")
        return file.read(most + 1)


def replace(path: Path, raw: bytes) -> None:
    """Write beside ``path``, bring it to the disk, rename, and bring the new name to the disk."""
    beside = path.with_name(path.name + ".tmp")
    beside.unlink(missing_ok=True)  # of a save that was killed
    try:
        with open(beside, "xb") as file:  # which follows no link
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
