r"""A captured graph as machine code, and when that pays.

``torch.compile`` fuses everything between the matrix products of a graph into a few loops over
memory.  It costs seconds, once for each graph and machine (its results are kept on disk), so a
short run is quicker without it: :func:`pays` decides by the size of graph and budget alone, never
by a clock, because the two engines round differently and a run shall be repeatable.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pyro_vae.graphs import cache, libraries
from pyro_vae.graphs.elementary import APART
from pyro_vae.graphs.lifted import Lifted, Refusal
from pyro_vae.graphs.logarithms import join_logarithms
from pyro_vae.graphs.probing import close
from pyro_vae.graphs.products import multiplications, quicken
from pyro_vae.graphs.reasons import may_end_well, reason_of
from pyro_vae.graphs.tracing import traced
from pyro_vae.noise import LOOK, seeded
from pyro_vae.torch_internals import machine_code_of, sources_forgotten

logger = logging.getLogger("pyro_vae")
aten = torch.ops.aten
Flat = Callable[..., Sequence[Tensor]]  # flat tensors in, a list of tensors out


def machine_code(
    graph: fx.GraphModule,
    *tensors: Tensor,
    kept: bool = False,
    checked: bool = True,
    rough: bool = False,
) -> Flat | Refusal:
    """A flat graph as machine code, compiled now and compared once on these tensors.

    Args:
        graph: flat tensors in, a flat list out; it may write into its inputs.
        tensors: example inputs; they stay as they are.
        kept: whether random draws are left in the graph.
        checked: let the code look at shapes and strides at every call; on small nets that takes a
            tenth of a step, and who calls it with others without it reads memory at random.
        rough: compare to the precision of bfloat16, in which products are.

    Returns:
        The code, or a refusal: there is no C++ compiler, the compiler fails, or its code gives
        other numbers than the graph.
    """
    options = _options(kept, checked)
    plain, constants = libraries.with_constants_as_arguments(graph)
    examples = [*tensors, *constants]
    try:
        key = libraries.key_of(plain, examples, options)
        code: Flat | None = libraries.loaded(key, plain)
        if code is None or not _is_good(code, plain, examples, rough, key):
            with seeded(*LOOK), sources_forgotten(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's own, of its own code
                cache.sweep()
                code = _built_somehow(plain, examples, options, key)
            if not _agree(code, plain, examples, rough):
                return Refusal("the compiled code gives other numbers than the graph")
            libraries.keep(key, code)
    except Exception as error:  # whatever the compiler's many parts raise is the reason
        return Refusal(reason_of(error))
    return _with_constants(code, constants) if constants else code


def _is_good(code: Flat, graph: Flat, tensors: Sequence[Tensor], rough: bool, key: str) -> bool:
    """Whether a library that was kept says what the graph says; else it is forgotten."""
    with contextlib.suppress(Exception):
        if _agree(code, graph, tensors, rough):
            return True
    libraries.forget(key)
    return False


def machine_code_of_either(
    first: fx.GraphModule, second: fx.GraphModule, *tensors: Tensor, **options: Any
) -> tuple[Flat | Refusal, bool]:
    """The first of two graphs that can be compiled as machine code, and whether it is the first.

    Where only the second can be, no later process tries the first.  Options as above.
    """
    plain, constants = libraries.with_constants_as_arguments(first)
    forms = _options(options.get("kept", False), options.get("checked", True))
    key = libraries.key_of(plain, [*tensors, *constants], forms)
    if not libraries.is_known_to(key, libraries.FAIL):
        code = machine_code(first, *tensors, **options)
        if not isinstance(code, Refusal):
            return code, True
    code = machine_code(second, *tensors, **options)
    if not isinstance(code, Refusal):
        libraries.make_known(key, libraries.FAIL)
    return code, False


def _options(kept: bool, checked: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"size_asserts": checked}
    if kept:  # draws that stay in the graph shall be those of the graph run eagerly
        options["fallback_random"] = True
    return options


def _with_constants(code: Flat, constants: Sequence[Tensor]) -> Flat:
    def run(*tensors: Tensor) -> Sequence[Tensor]:
        return code(*tensors, *constants)

    return run


def _built_somehow(
    graph: fx.GraphModule, tensors: Sequence[Tensor], options: dict[str, Any], key: str
) -> Flat:
    """Machine code in the first way that works."""
    # Kernels that are called by C++ give the same bits as those that Python calls, a sixth of a
    # small net's step earlier; not every operation can be called so.  The last way has no need of
    # the cache, where something may have been left half written once.
    ways: list[dict[str, Any]] = [{}, {"afresh": True}]
    on_cpu = not any(t.is_cuda for t in tensors)
    if by_cpp := on_cpu and not libraries.is_known_to(key, libraries.NEED_PYTHON):
        ways.insert(0, {"cpp_wrapper": True})
    failed = False
    while True:
        try:
            code = _built(graph, tensors, options, on_cpu, **ways.pop(0))
        except Exception as error:
            # What it names shall be gone for the next process.
            gone = cache.removed_as_named(error)
            if not ways or not (gone or may_end_well(error)):
                raise
            failed |= by_cpp and len(ways) == 2 and not gone
            logger.info("compiled another way, after this: %s", reason_of(error))
        else:
            if failed and ways:
                libraries.make_known(key, libraries.NEED_PYTHON)
            return code


def _built(
    graph: fx.GraphModule,
    tensors: Sequence[Tensor],
    options: dict[str, Any],
    on_cpu: bool,
    afresh: bool = False,
    **more: Any,
) -> Flat:
    # Not torch.compile: its guards ask at every call whether Python has changed, and a graph
    # has none; on small nets they take as long as the arithmetic.
    apart = traced(graph, *_copies(tensors), apart=APART)
    if on_cpu:
        join_logarithms(apart)
        quicken(apart)
        # A product that adds its bias copies the bias into its result first, a pass over memory;
        # apart from it, the sum becomes a part of what follows.  The compiler's pattern matcher
        # would put the two together again, and has nothing else to find in these graphs.
        more["pattern_matcher"] = False
    return machine_code_of(apart, _copies(tensors), options | more, afresh=afresh)


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


def _agree(code: Flat, graph: Flat, tensors: Sequence[Tensor], rough: bool) -> bool:
    """Whether both give the same, and write the same into their arguments."""
    found = []
    for each in (code, graph):
        own = _copies(tensors)
        with torch.no_grad(), seeded(*LOOK):
            found.append([*each(*own), *own])
    if rough:
        found = [[t.bfloat16() if t.is_floating_point() else t for t in each] for each in found]
    return all(close(a, b) for a, b in zip(*found, strict=True))


def compiled(lifted: Lifted, *args: Any) -> Lifted | Refusal:
    """The same function of the same arguments and noise as machine code; see above."""
    tensors = [*pytree.tree_leaves(args), *lifted.draw((2,))]
    options = {"kept": bool(lifted.kept), "rough": lifted.rough}
    code = machine_code(lifted.graph, *map(Tensor.contiguous, tensors), **options)
    if isinstance(code, Refusal):
        return code
    made = copy.copy(lifted)
    made.run = _row_by_row(code)
    return made


def _row_by_row(code: Flat) -> Flat:
    """Code that was made for contiguous tensors, for any: an expanded one, say, or a column."""

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        return code(*map(Tensor.contiguous, tensors))

    return run


def repaid(graph: fx.GraphModule, calls: int, *tensors: Tensor) -> Flat:
    """A flat graph as machine code where so many calls repay that, else the graph as it is.

    Args:
        graph: without random draws of its own.
        calls: how often it will be run, about.
        tensors: example inputs.
    """
    if not _gain(graph, calls) > 0:
        return graph
    code = machine_code(graph, *map(Tensor.contiguous, tensors))
    if isinstance(code, Refusal):
        warn_not_compiled(str(code))
        return graph
    return _row_by_row(code)


@functools.cache  # a fact about the machine, so once a process and not once a run
def warn_not_compiled(reason: str) -> None:
    """Say on the screen that this machine cannot compile, where nobody has asked it to."""
    logger.warning("runs are slower than they could be, not compiled: %s", reason)


# --- whether it pays ----------------------------------------------------------------------------
# Rough times of a core of 2020, in seconds: right within a factor of two is right enough.

PER_OPERATION = 4e-6  # what an operation costs besides its arithmetic, when called from Python
PER_ENTRY = 6e-10  # writing and reading an entry of a tensor that fusion keeps in a register
PER_MULTIPLICATION = 4e-12  # of a large product, which oneDNN takes less for
COMPILATION = 2.0  # of any graph
COMPILATION_PER_OPERATION = 0.02
PRODUCTS = (
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.convolution.default,
    aten.convolution_backward.default,
)


def pays(graphs: Mapping[Lifted, int]) -> bool:
    """Whether compiling these graphs saves more time over so many runs of each than it costs."""
    return sum(_gain(lifted.graph, runs) for lifted, runs in graphs.items()) > 0


def _gain(graph: fx.GraphModule, runs: int) -> float:
    """Seconds that so many runs are shorter, less those of compiling."""
    fused = [node for node in graph.graph.nodes if _is_fused(node)]
    saving = sum(PER_OPERATION + PER_ENTRY * _entries(node) for node in fused)
    saving += PER_MULTIPLICATION * sum(map(multiplications, graph.graph.nodes))
    return runs * saving - COMPILATION - COMPILATION_PER_OPERATION * len(fused)


def _is_fused(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target not in PRODUCTS


def entries_of(lifted: Lifted) -> int:
    """Entries of all tensors that a graph makes."""
    return max(
        1, sum(_entries(node) for node in lifted.graph.graph.nodes if node.op == "call_function")
    )


def _entries(node: fx.Node) -> int:
    shape = getattr(node.meta.get("tensor_meta"), "shape", None)  # none where there are several
    return 0 if shape is None else shape.numel()
