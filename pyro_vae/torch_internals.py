"""What the package takes from inside torch, in one place, and what differs between its versions.

A graph is captured, compared and compiled by parts of torch that it does not promise to keep:

* ``make_fx`` records what a function does to tensors.  From 2.14 on, without a table of its own, it
  applies one that turns ``detach`` into ``alias``: every stop-gradient is lost when the graph is
  differentiated once more (which the comparison after a capture finds).  An empty table keeps the
  operations as they were called, as in 2.9 to 2.13.
* ``standalone_compile`` makes machine code of a graph without the guards of ``torch.compile``; it
  came with 2.8.  Its compiler is imported when it is asked for: the import alone writes to a cache.
* Optimizers, and Pyro's plates, import ``torch._dynamo`` when the first of them is made, compiled
  or not, and that import makes the cache's folder or fails.  Where it would fail, a temporary
  folder takes its place, and that is said.
* ``TorchDispatchMode`` sees every operation; ``no_modes`` hides those that are active.
* ``without_onednn`` switches oneDNN off for a while, without the warning about GPUs of
  ``torch.backends.mkldnn.flags``.
* ``torch._dynamo`` imports ``tabulate``, where that is installed, while Python ends; that evaluates
  code, and Python forgets that it was to die of SIGINT.  ``ready_to_end`` imports it before.
* ``modes`` are those of this thread, to be put back where one was left behind.
* ``graph_module`` keeps the source of every graph; ``sources_forgotten`` drops those of ours.
* ``has_bfloat16_products`` asks what the processor has.
* ``StorageWeakRef`` names the memory of a tensor without keeping it.

To try another version of torch: ``make matrix``.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import getpass
import importlib
import linecache
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, overrides
from torch.fx import graph_module
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as no_modes

__all__ = [
    "Modes",
    "StorageWeakRef",
    "TorchDispatchMode",
    "compile_cache",
    "has_bfloat16_products",
    "machine_code_of",
    "modes",
    "no_modes",
    "put_back_modes",
    "ready_to_end",
    "sources_forgotten",
    "traced",
    "without_onednn",
]


def ready_to_end() -> None:
    """Import what torch would import while Python ends: ahead of an exit by a signal."""
    with contextlib.suppress(ImportError):
        importlib.import_module("tabulate")


Modes = tuple[list[Any], list[Any]]


def modes() -> Modes:
    """What this thread's operations are seen by: modes of dispatch and of functions."""
    if not torch._C._len_torch_dispatch_stack() and not torch._C._len_torch_function_stack():
        return [], []
    return (
        _python_dispatch._get_current_dispatch_mode_stack(),
        overrides._get_current_function_mode_stack(),
    )


def put_back_modes(before: Modes) -> None:
    """Make them so again."""
    for own, now, kept in zip((_python_dispatch, overrides), modes(), before, strict=True):
        if now != kept:
            for _ in now:
                own._pop_mode()
            for mode in kept:
                own._push_mode(mode)


def has_bfloat16_products() -> bool:
    """Whether this processor multiplies matrices of bfloat16 by instructions of its own."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """Let torch's own operations do what oneDNN does else."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def traced(
    function: Callable[..., Any],
    *args: Tensor,
    apart: Mapping[Any, Callable[..., Any]] | None = None,
) -> fx.GraphModule:
    """The operations that a function of flat tensors comes to, as a graph.

    Args:
        function: flat tensors in, a list of tensors out.
        args: example tensors.
        apart: for an operation, a function of simpler ones to record in its place.
    """
    with _without_examples():
        return make_fx(function, decomposition_table=dict(apart or {}))(*args)


# Beside the form of each result, "tensor_meta", `make_fx` notes an example of it without values,
# "val", which takes a third of the time of a capture and which nothing here looks at.  This
# thread's graphs go without; a compiler makes its own.
_bare: contextvars.ContextVar[bool] = contextvars.ContextVar("_bare", default=False)
_example_of = proxy_tensor.extract_val


def _example_or_none(value: Any, *args: Any, **options: Any) -> Any:
    return None if _bare.get() else _example_of(value, *args, **options)


@contextlib.contextmanager
def _without_examples() -> Iterator[None]:
    vars(proxy_tensor)["extract_val"] = _example_or_none  # stays, and does nothing elsewhere
    token = _bare.set(True)
    try:
        yield
    finally:
        _bare.reset(token)


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


def machine_code_of(
    graph: fx.GraphModule,
    tensors: Sequence[Tensor],
    options: dict[str, Any],
    *,
    afresh: bool = False,
) -> Callable[..., Sequence[Tensor]]:
    """A flat graph of tensors of these shapes as machine code; raises what the compiler raises.

    Args:
        graph, tensors: the graph and its inputs.
        options: of the compiler.
        afresh: in a cache of its own that is not kept, with nothing that was compiled before, and
            with vector instructions only as they are seen to work.
    """
    from torch._inductor import config, cpu_vec_isa, standalone_compile
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.utils import fresh_cache

    _say_if_nothing_is_kept()
    options = {VECTORS: True} | options if config.cpp.vec_isa_ok is None else {**options}
    if afresh:
        options |= {HEADERS: False, VECTORS: None}
        cpu_vec_isa.valid_vec_isa_list.cache_clear()
    kept = len(PyCodeCache.modules)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet("torch._inductor"))
        if afresh:  # in a folder of ours: torch leaves its own behind where it fails
            own = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            stack.enter_context(fresh_cache(dir=own))
        code = standalone_compile(
            graph,
            list(tensors),
            dynamic_shapes="from_example_inputs",
            options={"config_patches": options},
        )
    del PyCodeCache.modules[kept:]  # the code holds its own; this list holds all for good
    return code


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """What a part of torch notes in its log, of its own code, is nothing for our users.

    Unless one of them has asked for it by a level.
    """
    log = logging.getLogger(name)
    before = log.level
    if before in (logging.NOTSET, logging.WARNING):
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


CACHE = "TORCHINDUCTOR_CACHE_DIR"
HEADERS = "cpp_cache_precompile_headers"  # into a folder that all caches share
# Each set of vector instructions that the processor names is tried by compiling, and then loading,
# a library in another process: 11 s at the first compilation on a machine, and one in every process
# after it, to learn that compiler and torch are of this century.  Where they are not, the first
# kernel fails, and is built anew with the trial.
VECTORS = "cpp.vec_isa_ok"


def compile_cache() -> str:
    """The folder of the compiler's cache, as torch finds it."""
    user = "unknown"
    with contextlib.suppress(KeyError, OSError):
        user = getpass.getuser()
    return os.environ.get(CACHE) or os.path.join(tempfile.gettempdir(), f"torchinductor_{user}")


def _refused(folder: str) -> str:
    """Why nothing can be written there; empty where it can."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        return str(error.strerror)
    return "" if os.access(folder, os.W_OK) else "no permission to write"


_why, _named = _refused(compile_cache()), compile_cache()
if _why:
    _instead = tempfile.TemporaryDirectory(prefix="torchinductor_")  # until the process ends
    os.environ[CACHE] = _instead.name


@functools.cache
def _say_if_nothing_is_kept() -> None:
    """Once a process, and only where something is compiled."""
    if _why:
        logging.getLogger("pyro_vae").warning(
            "torch's compile cache %s cannot be used (%s): what is compiled is not kept; set %s "
            "to a folder that can be written",
            _named, _why, CACHE,
        )  # fmt: skip
