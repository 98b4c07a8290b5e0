"""What the package takes from inside torch, in one place, and what differs between its versions.

A graph is captured, compared and compiled by parts of torch that it does not promise to keep:

* ``make_fx`` records what a function does to tensors.  From 2.14 on, without a table of its own, it
  applies one that turns ``detach`` into ``alias``: every stop-gradient is lost when the graph is
  differentiated once more (which the comparison after a capture finds).  An empty table keeps the
  operations as they were called, as in 2.9 to 2.13.
* ``standalone_compile`` makes machine code of a graph without the guards of ``torch.compile``; it
  came with 2.8.  Its compiler is imported when it is asked for: the import alone writes to a cache
  and takes two seconds.
* What it makes for a CPU is a ``Library``, an extension module of Python's with one function that
  takes and returns handles of tensors.  It is called without what torch wraps around it, and
  another process can load it without the compiler.
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

from torch.fx.experimental.proxy_tensor import (
    autograd_would_have_decomposed,
    disable_autocast_cache,
)
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes as no_modes
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_vae.torch_internals.compiler import (
    CACHE,
    Library,
    compile_cache,
    compilers_settings,
    machine_code_of,
    written_by,
)
from pyro_vae.torch_internals.modes import (
    Modes,
    TorchDispatchMode,
    compiler_left_out,
    modes,
    put_back_modes,
    ready_to_end,
)
from pyro_vae.torch_internals.processor import has_bfloat16_products, without_onednn
from pyro_vae.torch_internals.tracing import sources_forgotten, traced_by_torch

__all__ = [
    "CACHE",
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
