"""torch's own tracer, and what it leaves behind."""

from __future__ import annotations

import contextlib
import linecache
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, fx
from torch.fx import graph_module
from torch.fx.experimental.proxy_tensor import make_fx


def traced_by_torch(
    function: Callable[..., Any],
    *args: Tensor,
    apart: Mapping[Any, Callable[..., Any]] | None = None,
) -> fx.GraphModule:
    """As :func:`pyro_vae.graphs.tracing.traced`, of whatever ``make_fx`` can record."""
    return make_fx(function, decomposition_table=dict(apart or {}))(*args)


@contextlib.contextmanager
def sources_forgotten() -> Iterator[None]:
    """Drop the sources of the graphs made in here, which torch keeps for good to show in errors.

    A process that makes graphs again and again would grow by them.
    """
    kept = graph_module._loader.eval_cache
    before = set(kept)
    try:
        yield
    finally:
        for name in kept.keys() - before:
            kept.pop(name, None)
            linecache.cache.pop(name, None)
