"""What the processor has, and what is used of it."""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Iterator
from pathlib import Path

import torch


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


@functools.cache
def processor() -> str:
    """Its name and its instructions, for which code is made."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        named = ("model name", "flags", "Features", "CPU ")
        return "\n".join(line for line in lines if line.startswith(named))
    return f"{platform.machine()} {platform.processor()} {platform.node()}"
