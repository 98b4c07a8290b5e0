"""What a saved run must look like before anything is made of it: names, types and sizes.

A digest finds what was damaged by accident.  Who writes a file by hand can give it a right one, so
each value is looked at: nothing of it is imported, called or allocated before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.recording import KIND, PLAIN
from pyro_vae.runs.storage import MANIFEST, read
from pyro_vae.torch_internals import TorchDispatchMode

Check = Callable[[Any], bool]


def read_run(folder: Path) -> dict[str, Any]:
    """The content of a saved run.

    Raises:
        ValueError: nothing is there; or something is damaged, or no part of a run, by its name.
    """
    saved = read(folder)
    for name in ("manifest", "parameters", "buffers", "state", "history", "build"):
        if name not in saved:
            raise _no_run(folder, f"has no {name!r}")
    if wrong := _misfit(saved, RUN, "") or _contradiction(saved):
        raise _no_run(folder, f"has {wrong}")
    return saved


def _no_run(folder: Path, what: str) -> ValueError:
    return ValueError(f"{folder / MANIFEST} {what}, so no save has written it: begin anew")


# --- kinds of values ----------------------------------------------------------------------------


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _some(value: Any) -> bool:
    return _count(value) and value > 0


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**1023 and math.isfinite(value)


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _text(value: Any) -> bool:
    return type(value) is str


def _tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and not (
        value.is_floating_point() and bool(value.isnan().any())
    )


def _dtype(value: Any) -> bool:
    found = getattr(torch, value, None) if _text(value) else None
    return isinstance(found, torch.dtype) and found.is_floating_point


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _each(check: Check) -> Check:
    def fits(value: Any) -> bool:
        return isinstance(value, dict) and all(_text(n) and check(v) for n, v in value.items())

    return fits


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _row(value: Any) -> bool:
    """dtype and shape of a row, or of each entry of a dict."""
    if not isinstance(value, dict):
        return False
    if not _text(value.get("dtype")):
        return all(_text(name) and _row(entry) for name, entry in value.items())
    shape = value.get("shape")
    known = isinstance(getattr(torch, value["dtype"], None), torch.dtype)
    return known and isinstance(shape, list) and all(map(_count, shape))


def is_form(value: Any) -> bool:
    """Whether it is what ``recording.form_of`` returns."""
    if type(value) in PLAIN:
        return True
    if isinstance(value, (list, tuple)):
        return all(map(is_form, value))
    if not isinstance(value, dict) or not all(map(_text, value)):
        return False
    kind = value.get(KIND)
    needed: dict[str, Check] = {}
    if kind == "made":
        needed = {"class": _text, "arguments": _each(is_form), "defaults": _list_of(_text)}
    elif kind == "incomparable":
        needed = {"class": _text, "why": _text}
    elif kind is not None:
        texts = {"class", "name", "sha256", "structure", "python"} & value.keys()
        needed = {KIND: _text, **dict.fromkeys(texts, _text)}
    return all(check(value.get(name)) for name, check in needed.items()) and all(
        is_form(part) for part in value.values()
    )


def _options(value: Any) -> bool:
    """Of an optimizer or a schedule: numbers that are such, texts, and containers of them."""
    if isinstance(value, dict):
        return all(map(_options, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_options, value))
    if isinstance(value, float):
        return not math.isnan(value)
    return type(value) in PLAIN or _tensor(value)


def _slots(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _count(slot) and isinstance(state, dict) and all(map(_text, state)) and _options(state)
        for slot, state in value.items()
    )


def _groups(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(group, dict)
        and _list_of(_count)(group.get("params"))
        and all(map(_text, group))
        and _options(group)
        for group in value
    )


TENSORS = _each(_tensor)
STATE: dict[str, Any] = {"rows": TENSORS, "shared": TENSORS}
RUN: dict[str, Any] = {
    "build": _optional(lambda v: isinstance(v, dict) and _text(v.get("model")) and is_form(v)),
    "parameters": TENSORS,
    "buffers": TENSORS,
    "state": STATE,
    "best?": {"parameters": TENSORS, "buffers": TENSORS, "state": STATE},
    "history": {
        "records": _list_of(_each(_number)),
        "sums": _each(_number),
        "counts": _each(_number),
    },
    "optimizer?": {"state": _slots, "param_groups": _groups},
    "scheduler?": _optional(lambda v: isinstance(v, dict) and all(map(_text, v)) and _options(v)),
    "progress?": {
        "steps": _count,
        "samples": _count,
        "batches": _count,
        "seconds": _finite,
        "best": _optional(_tensor),
        "waited": _count,
        "called_off": _count,
        "best_bound": _optional(_number),
        "best_step": _optional(_count),
    },
    "manifest": {
        "program": _text,
        "source_digest": _optional(_text),
        "parts": _each(is_form),
        "parameters?": _count,
        "data_digest": _text,
        "num_data": _some,
        "batch_size": _some,
        "row": _row,
        "dtype": _dtype,
        "device": _text,
        "threads": _some,
        "versions": lambda v: _each(_text)(v) and "torch" in v,
        "objective": _text,
        "objective_record": is_form,
        "objective_code?": is_form,
        "optimizer_record?": is_form,
        "engine": _text,
        "engine_reason?": _text,
        "matmul_precision?": _text,
        "optimizer": _text,
        "optimizer_options": _each(lambda v: _options(v) or is_form(v)),
        "schedule": _optional(_text),
        "schedule_record": is_form,
        "seed": lambda v: type(v) is int,
        "clip": _optional(_finite),
        "weight_prior": _finite,
        "validation_digest": _optional(_text),
        "steps": _count,
        "samples": _count,
        "leapfrogs": _count,
        "seconds": _finite,
        "keep": lambda v: v in ("best", "last"),
        "kept_step": _optional(_count),
        "best_step": _optional(_count),
        "best_validation_bound": _optional(_number),
        "stopped?": _text,
    },
}  # fmt: skip


def _misfit(value: Any, wanted: Any, path: str) -> str:
    """The first entry that is missing or of another kind; empty where there is none."""
    if not isinstance(wanted, dict):
        return "" if wanted(value) else f"{path} {_shown(value)}"
    if not isinstance(value, dict):
        return f"{path} {_shown(value)}"
    for name, check in wanted.items():
        bare = name.removesuffix("?")
        if bare not in value:
            if bare == name:
                return f"no {path}{'/' if path else ''}{bare}"
            continue
        if said := _misfit(value[bare], check, f"{path}{'/' if path else ''}{bare}"):
            return said
    return ""


def _shown(value: Any) -> str:
    if type(value) in PLAIN:
        return f"{value!r}"[:60]
    return f"with a value that is none of its kind ({type(value).__name__})"


def _contradiction(saved: dict[str, Any]) -> str:
    """Numbers that are told twice, and differ."""
    progress, manifest = saved.get("progress"), saved["manifest"]
    if progress is not None:
        for name in ("steps", "samples"):
            if progress[name] != manifest[name]:
                return f"{name} {progress[name]} and {manifest[name]}"
    rising = {"step": 1, "samples": 0, "seconds": 0}  # and from where
    for name, last in rising.items():
        for record in saved["history"]["records"]:
            if record.get(name, last) < last:
                return f"a history in which {name} falls to {record[name]}"
            last = record.get(name, last)
        if name in manifest and last > max(manifest[name], rising[name]):
            return f"a history of {last} {name} and {manifest[name]} in all"
    if "best" in saved:
        for part in ("parameters", "buffers"):
            shapes = [{n: t.shape for n, t in s[part].items()} for s in (saved, saved["best"])]
            if shapes[0] != shapes[1]:
                return f"other {part} as the best than as the last"
    return ""


# --- sizes --------------------------------------------------------------------------------------


class Bounded(TorchDispatchMode):
    """While it is entered, no tensor is made that is larger than all that a file holds.

    Args:
        tensors: of the file.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.most = 4 * sum(t.numel() for t in tensors.values()) + (1 << 20)
        self.calls = 500 * len(tensors) + 20_000

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [*args, *(kwargs or {}).values()]
        makes = not any(isinstance(each, Tensor) for each in given)
        self.calls -= 1
        for each in given:
            whole = [each] if type(each) is int and makes else each
            sizes = isinstance(whole, (list, tuple)) and all(type(n) is int for n in whole)
            if self.calls < 0 or (sizes and math.prod(map(abs, whole)) > self.most):
                raise ValueError("its options ask for more than the file holds values of")
        return func(*args, **(kwargs or {}))
