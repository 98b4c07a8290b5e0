"""On a GPU: the kernels of a step are recorded once and from then on started together.

A small step is some twenty kernels of a few microseconds, and to start each of them from here takes
as long as it runs; a CUDA graph starts all at once.  torch's compiler makes such graphs itself, but
not of code that writes into its inputs, which is what a training step does, and where it makes one
the results of a call are overwritten by the next.  So a step is recorded here, at the addresses of
its parameters, which it keeps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.graphs.compiling import Flat

logger = logging.getLogger("pyro_vae")

WARM = 3  # runs before the recording, in which libraries choose their kernels and take memory


def replayed(code: Flat, tensors: Sequence[Tensor], fixed: Sequence[Tensor]) -> Flat:
    """The same function of tensors of the same forms, as one CUDA graph; or as it is.

    Args:
        code: no draws of its own; it may write into what is fixed.
        tensors: example inputs.
        fixed: those of them, by identity, that every call has at the same address.  They are
            written by recording: put them back.

    Returns:
        A function whose results are the caller's own; ``code`` where nothing can be recorded, with
        the reason in the log.
    """
    places = {id(t) for t in fixed}
    own = [t if id(t) in places else t.clone() for t in tensors]
    new = [i for i, t in enumerate(tensors) if id(t) not in places]
    try:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                code(*own)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = code(*own)
    except RuntimeError as error:
        logger.info("not recorded as a CUDA graph: %s", str(error).splitlines()[0])
        return code

    def run(*given: Tensor) -> list[Tensor]:
        for i in new:
            own[i].copy_(given[i])
        graph.replay()
        return [r.clone() for r in results]

    return run
