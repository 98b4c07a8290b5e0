"""What the package takes from inside torch, in one place, and what differs between its versions.

A graph is captured, compared and compiled by parts of torch that it does not promise to keep:

* ``make_fx`` records what a function does to tensors.  From 2.14 on, without a table of its own, it
  applies one that turns ``detach`` into ``alias``: every stop-gradient is lost when the graph is
  differentiated once more (which the comparison after a capture finds).  An empty table keeps the
  operations as they were called, as in 2.9 to 2.13.
* ``standalone_compile`` makes machine code of a graph without the guards of ``torch.compile``; it
  came with 2.8.  Its compiler is imported when it is asked for: the import alone writes to a cache
  and takes two seconds.
* What it makes for a CPU is a ``Library``, an extension module of Python's that one function enters,
  tensors as handles in and out.  It is called without what torch wraps around it, and can be loaded
  by another process without the compiler.
* Optimizers, modes and ``make_fx`` import ``torch._dynamo`` when they are first used, a second, and
  that import makes the cache's folder or fails.  Here they do without where they can.  Where it
  would fail, a temporary folder takes its place, and that is said.
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
import importlib.util
import linecache
import logging
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, overrides
from torch.fx import graph_module
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import (
    autograd_would_have_decomposed,
    disable_autocast_cache,
    make_fx,
)
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import _disable_current_modes as no_modes
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "Modes",
    "Library",
    "StorageWeakRef",
    "TorchDispatchMode",
    "WeakTensorKeyDictionary",
    "autograd_would_have_decomposed",
    "compile_cache",
    "compiler_left_out",
    "compilers_settings",
    "disable_autocast_cache",
    "has_bfloat16_products",
    "machine_code_of",
    "modes",
    "no_modes",
    "put_back_modes",
    "ready_to_end",
    "sources_forgotten",
    "traced_by_torch",
    "without_onednn",
    "written_by",
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


def traced_by_torch(
    function: Callable[..., Any],
    *args: Tensor,
    apart: Mapping[Any, Callable[..., Any]] | None = None,
) -> fx.GraphModule:
    """The operations that a function of flat tensors comes to, as a graph, by torch's own tracer.

    Args:
        function: flat tensors in, a list of tensors out.
        args: example tensors.
        apart: for an operation, a function of simpler ones to record in its place.
    """
    with _without_examples():
        return make_fx(function, decomposition_table=dict(apart or {}))(*args)


DYNAMO = "torch._dynamo"

class TorchDispatchMode(_python_dispatch.TorchDispatchMode):
    """torch's, which imports its compiler at the first operation to be left alone by it.

    These are left alone by it where somebody else has imported it.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        own = vars(cls).get("__torch_dispatch__")
        super().__init_subclass__(**options)
        if own is not None:
            cls._left_alone, cls.__torch_dispatch__ = cls.__torch_dispatch__, own  # type: ignore[attr-defined, method-assign]

    def __enter__(self) -> Any:
        if DYNAMO in sys.modules:
            type(self).__torch_dispatch__ = type(self)._left_alone  # type: ignore[attr-defined, method-assign]
        return super().__enter__()


@contextlib.contextmanager
def compiler_left_out() -> Iterator[None]:
    """Let torch make and save optimizers without the import of its compiler.

    Each of these functions asks it to keep out when it is first called.  Nobody has to who is not
    there; once it has been imported, by whomever, they ask again.
    """
    asking: list[Any] = []
    if DYNAMO not in sys.modules:
        found = vars(torch.optim.Optimizer).values()
        inner = [getattr(f, "__wrapped__", None) for f in found if callable(f)]
        asking = [f for f in inner if f is not None and not hasattr(f, ASKED)]
    for function in asking:
        setattr(function, ASKED, function)
    try:
        yield
    finally:
        for function in asking:
            if getattr(function, ASKED, None) is function:
                delattr(function, ASKED)


ASKED = "__dynamo_disable"  # where torch keeps what came of it


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

    Returns:
        A :class:`Library` where the compiler has made one that takes these tensors as they are and
        returns what the graph does, else the compiler's own function.
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
    modules = PyCodeCache.modules[kept:]
    del PyCodeCache.modules[kept:]  # the code holds its own; this list holds all for good
    return (None if afresh else _library_of(modules, graph)) or code


def _library_of(modules: Sequence[Any], graph: fx.GraphModule) -> Library | None:
    """What a compilation has loaded, if it is one library with the graph's own arguments."""
    if len(modules) != 1 or not hasattr(modules[0], "cpp_wrapper_src"):
        return None
    (output,) = graph.graph.find_nodes(op="output")
    inputs = len(graph.graph.find_nodes(op="placeholder"))
    taken = re.findall(r"input_handles, (\d+)\)", modules[0].cpp_wrapper_src)
    if taken != [str(inputs)] or not all(isinstance(r, fx.Node) for r in output.args[0]):
        return None  # some are joined, or are no tensors
    return Library(Path(modules[0].inductor_entry.__self__.__file__), written_by(graph))


def written_by(graph: fx.GraphModule) -> list[int]:
    """The positions of a flat graph's arguments that it writes into."""
    arguments = graph.graph.find_nodes(op="placeholder")
    return [
        i
        for i, argument in enumerate(arguments)
        for user in argument.users
        if user.target is torch.ops.aten.copy_.default and user.args[0] is argument
    ]


class Library:
    """Machine code for a CPU: flat tensors in, a list of tensors out.

    Args:
        path: of the extension module that torch's compiler has built.
        written: the positions of arguments that it writes into.

    Raises:
        ImportError: it cannot be loaded.
    """

    def __init__(self, path: Path, written: Sequence[int] = ()) -> None:
        self.path, self._written = path, tuple(written)
        os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(
            torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr  # type: ignore[attr-defined]
        )
        spec = importlib.util.spec_from_file_location(f"{path.stem}.inductor_entry_cpp", path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is no extension module")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._entry = module.inductor_entry_cpp

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        # Autograd and autocast would see the operations that the code calls, and nobody the writing.
        with torch._C._DisableAutocast(), torch._C._AutoDispatchBelowAutograd():
            handles = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors([*tensors])
            results = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(self._entry(handles))
        if self._written:
            torch.autograd.graph.increment_version([tensors[i] for i in self._written])
        return results


def compilers_settings() -> list[str]:
    """What machine code depends on besides its graph and options: torch, settings, processor."""
    config = sys.modules.get("torch._inductor.config")  # where it is not, nobody has changed it
    named = [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith(("TORCH", "ATEN", "CXX")) and name != CACHE
    ]
    return [
        sys.version, torch.__version__, str(torch.version.git_version), _processor(),
        torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads()),
        str(torch.get_default_dtype()), str(torch.are_deterministic_algorithms_enabled()),
        str(torch._C._get_mkldnn_enabled()), *named,
        "" if config is None else config.codegen_config(),
    ]  # fmt: skip


@functools.cache
def _processor() -> str:
    """Its name and its instructions, for which code is made."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        named = ("model name", "flags", "Features", "CPU ")
        return "\n".join(line for line in lines if line.startswith(named))
    return f"{platform.machine()} {platform.processor()} {platform.node()}"


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
