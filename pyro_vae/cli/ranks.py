"""A command in several processes, which ``torchrun`` started: one of them speaks."""

from __future__ import annotations

import os
from datetime import timedelta


def rank() -> int:
    """This process's number; 0 of one that is alone."""
    return int(os.environ.get("RANK", "0")) if _among_others() else 0


def speaks() -> bool:
    """Whether this process is the one to say why the command ends: the first that asks.

    All of them end for one reason, and whichever survives must say it.
    """
    if not _among_others():
        return True
    from torch.distributed import TCPStore

    try:  # torchrun's own store, which outlives its workers
        place, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(place, port, is_master=False, timeout=timedelta(seconds=5))
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"pyro-vae/spoke/{start}", 1) == 1
    except (RuntimeError, LookupError, ValueError):
        return rank() == 0


def _among_others() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
