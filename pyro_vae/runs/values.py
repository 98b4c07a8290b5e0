"""Values as JSON, and back.

JSON has no tensors, tuples, infinities or numbers as names.  They are written as an object with one
name that begins with "$": {"$tensor": "optimizer/state/0/sum"}, {"$tuple": [0.9, 0.999]}.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor


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


def require_depth(value: Any, most: int) -> None:
    """Refuse what is nested deeper than any run is.

    Raises:
        ValueError: it is.
    """
    level = [value]
    for _ in range(most):
        level = [part for each in level for part in _parts(each)]
        if not level:
            return
    raise ValueError(f"it is nested more than {most} deep")


def _parts(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
