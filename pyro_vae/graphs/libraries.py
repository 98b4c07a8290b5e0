"""What was compiled before, found by its graph and loaded without the compiler.

torch's compiler keeps its results too, but to find one it has to be imported and to prepare the
graph again: two and a half seconds of a process that may have nothing else to do.  The library
that it has built stands on its own.  So a second name for it, in a folder beside torch's, says
what it was made of: the operations, the forms of the arguments, the options, this package's own
changes to graphs, torch, its settings and the processor.  Whoever loads one compares it with its
graph, as after a compilation.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import operator
import os
import shutil
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, fx
from torch._ops import OpOverload

from pyro_vae import torch_internals
from pyro_vae.graphs.cache import is_whole
from pyro_vae.torch_internals import Library, compile_cache, compilers_settings, written_by

logger = logging.getLogger("pyro_vae")


def with_constants_as_arguments(graph: fx.GraphModule) -> tuple[fx.GraphModule, list[Tensor]]:
    """The same function with the tensors that it holds as its last arguments, and these.

    A library holds none; where the graph holds something else, it is returned as it is.
    """
    held = {n: operator.attrgetter(n.target)(graph) for n in graph.graph.find_nodes(op="get_attr")}
    if not held or not all(isinstance(value, Tensor) for value in held.values()):
        return graph, []
    plain, at = fx.Graph(), dict[fx.Node, fx.Node]()
    first = [n for n in graph.graph.nodes if n.op == "placeholder"]
    for node in first:
        at[node] = plain.node_copy(node)
    for number, node in enumerate(held):
        at[node] = plain.placeholder(f"held_{number}")
        at[node].meta = dict(node.meta)
    for node in graph.graph.nodes:
        if node not in at:
            at[node] = plain.node_copy(node, at.__getitem__)
    return fx.GraphModule(graph, plain), [*held.values()]


def key_of(graph: fx.GraphModule, tensors: Sequence[Tensor], options: Mapping[str, Any]) -> str:
    """A name for the machine code of a graph; empty where there is none.

    There is none on a GPU, and where the graph does not say all of itself: a user's own operation
    may have another code under the same name.
    """
    for node in graph.graph.nodes:
        if node.op == "call_function" and not _is_known(node.target):
            return ""
        if node.op not in ("placeholder", "call_function", "output"):
            return ""
    if any(t.device.type != "cpu" for t in tensors):
        return ""
    forms = [(tuple(t.shape), t.stride(), str(t.dtype)) for t in tensors]
    said = [graph.code, repr(forms), repr(sorted(options.items())), _own_code()]
    text = "\0".join([*said, *compilers_settings()])
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _is_known(target: Any) -> bool:
    if isinstance(target, OpOverload):
        return target.namespace in ("aten", "prims", "pyro_vae")
    return isinstance(target, types.BuiltinFunctionType)


@functools.cache
def _own_code() -> str:
    """The files that change graphs before they are compiled."""
    folders = [Path(__file__).parent, Path(torch_internals.__file__).parent]
    files = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _place(key: str, ending: str = ".so") -> Path:
    return Path(compile_cache()) / "pyro_vae" / f"{key}{ending}"


def loaded(key: str, graph: fx.GraphModule) -> Library | None:
    """The library of that name, if there is one that can be loaded."""
    path = _place(key)
    if not key or not path.exists() or not is_whole(path):
        return None
    try:
        return Library(path, written_by(graph))
    except (ImportError, AttributeError) as error:
        logger.info("%s is built anew: %s", path, error)
        return None


def keep(key: str, code: Any) -> None:
    """Give a library its second name; where that cannot be done, the next process compiles."""
    if key and isinstance(code, Library):
        with contextlib.suppress(OSError), _written(_place(key)) as part:
            try:
                os.link(code.path, part)
            except OSError:
                shutil.copyfile(code.path, part)


def forget(key: str) -> None:
    """Take one out that gives other numbers than its graph."""
    with contextlib.suppress(OSError):
        _place(key).unlink()


# What else later processes need not find out again.
NEED_PYTHON = ".python"  # kernels cannot be called by C++
FAIL = ".fails"  # there is no machine code, though there is of another graph


def make_known(key: str, what: str) -> None:
    if key:
        with contextlib.suppress(OSError), _written(_place(key, what)) as part:
            part.touch()


def is_known_to(key: str, what: str) -> bool:
    return bool(key) and _place(key, what).exists()


@contextlib.contextmanager
def _written(place: Path) -> Iterator[Path]:
    """Another name for a file to be, so that it is all there once it is."""
    part = place.with_suffix(f".{os.getpid()}.part")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        part.replace(place)
    finally:  # of two names for one file, replacing leaves both
        part.unlink(missing_ok=True)
