"""torch's compiler: machine code of a graph, as a library where it can be, and its cache."""

from __future__ import annotations

import contextlib
import functools
import getpass
import importlib.util
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.torch_internals.processor import processor

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
    written: set[Any] = set()
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)  # of an operation
        if schema is not None and schema.is_mutable:
            each = zip(schema.arguments, node.args, strict=False)
            written.update(a for form, a in each if form.is_write and isinstance(a, fx.Node))
    return [i for i, n in enumerate(graph.graph.find_nodes(op="placeholder")) if n in written]


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
        # Autograd and autocast would see what is called, and nobody what is written.
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
        if name.startswith(("TORCHINDUCTOR_", "ATEN_", "CXX")) and name != CACHE
    ]
    return [
        sys.version, torch.__version__, str(torch.version.git_version), processor(),
        torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads()),
        str(torch.get_default_dtype()), str(torch.are_deterministic_algorithms_enabled()),
        str(torch._C._get_mkldnn_enabled()), *named,
        *([] if config is None else _changed(config)),
    ]  # fmt: skip


def _changed(config: Any) -> list[str]:
    """The compiler's settings that are not as it comes; some have been set to what they were."""
    entries, values = config._config, config.get_config_copy()
    return [f"{n}={v!r}" for n, v in sorted(values.items()) if v != entries[n].default]
