"""``fit`` in several processes: who they are, that they agree, and that one of them writes.

``torchrun`` starts W processes of one script, and ``fit`` in each of them trains one program with
the others (:mod:`pyro_vae.engine.ranks`).  Rank 0 alone has ``out``, progress, trackers and
callbacks; it evaluates and decides when a run ends, and tells the others.
"""

from __future__ import annotations

import atexit
import functools
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_vae.engine.ranks import ALONE, CURRENT, Lost, Ranks
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.objectives.base import State
from pyro_vae.recording import differences
from pyro_vae.runs.run import contents, restore
from pyro_vae.training.interrupts import Terminated, noted_signals
from pyro_vae.training.loop import Loop, Progress

P = ParamSpec("P")
T = TypeVar("T")

# What one process alone is given; the others train and are silent.
OF_THE_FIRST: dict[str, Any] = {
    "out": None, "resume": False, "checkpoint_every": None, "tracker": None, "callbacks": (),
    "progress": False,
}  # fmt: skip
# What all of them must have been given alike.
ALIKE = (
    "program", "dtype", "data_digest", "num_data", "seed", "batch_size", "optimizer",
    "optimizer_options", "schedule", "clip", "weight_prior", "validation_digest",
)  # fmt: skip


def joined() -> Ranks:
    """This process among those that ``torchrun`` started, or whose group its script has made."""
    if not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched() or os.environ.get("WORLD_SIZE", "1") == "1":
            return ALONE
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        if gpus:  # what "cuda" means from here on
            local = int(os.environ.get("LOCAL_RANK", "0"))
            torch.cuda.set_device(local % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
        atexit.register(_leave)
    if dist.get_world_size() == 1:
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size())


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def among_ranks(fit: Callable[P, T]) -> Callable[P, T]:
    """Let a training be one of all ranks, where there are several."""

    @functools.wraps(fit)
    def run(*args: P.args, **options: P.kwargs) -> T:
        # Inside another training rank 0 calls back, and what that trains is its own.
        ranks = joined() if CURRENT.get() is None else ALONE
        if ranks.size == 1:
            return fit(*args, **options)
        with ExitStack() as stack:
            if ranks.rank:
                options.update({n: v for n, v in OF_THE_FIRST.items() if n in options})
                options["progress"] = False
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore", PyroVaeWarning)  # rank 0 says the same
            ranks.signals = stack.enter_context(noted_signals())
            try:
                with ranks.together():
                    result = fit(*args, **options)
            except Lost:
                if dist.is_torchelastic_launched():
                    # torchrun tells the others to end, which they do: with their reason as the end.
                    stack.pop_all()
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                raise
        for number in ranks.signals[:1]:  # which came too late to end a step
            signal.raise_signal(number)
        return result

    return run


def begin(ranks: Ranks, loops: Sequence[Loop], manifests: Sequence[dict[str, Any]], num_steps: int,
          folder: Path | None) -> None:  # fmt: skip
    """Let all ranks go on from where rank 0 stands, with its decisions.

    Raises:
        ValueError: on all ranks, where they were given other data, programs or settings.
    """
    if ranks.size == 1:
        return
    _require_alike(ranks, manifests, num_steps)
    for loop in loops:
        memory = ranks.first(functools.partial(_memory, loop))
        if ranks.rank:
            _remember(loop, memory)
        loop.first = ranks.first
    if folder is None:
        loops[0].after_step = functools.partial(_obey, ranks)
    elif ranks.rank == 0:
        ranks.saves = True


def _require_alike(ranks: Ranks, manifests: Sequence[dict[str, Any]], num_steps: int) -> None:
    mine = [
        {n: m[n] for n in ALIKE} | {"objective": m["objective_record"], "steps": num_steps}
        for m in manifests
    ]
    theirs = ranks.each(mine)
    for rank in range(1, ranks.size):
        pairs = zip(theirs[0], theirs[rank], strict=False)
        between = f" in process 0 and in process {rank} "
        wrong = [line for a, b in pairs for line in differences(a, b, between=between)]
        if len(theirs[0]) != len(theirs[rank]):
            wrong.append(f"replicas are {len(theirs[0])}{between}{len(theirs[rank])}")
        if wrong:
            raise ValueError(
                f"the {ranks.size} processes of this training were given different things: "
                f"{'; '.join(wrong)}; give each the same data, program and options, and the whole "
                "of the data: rows are shared out by fit"
            )


def _memory(loop: Loop) -> dict[str, Any]:
    """All that steps depend on."""
    return {
        **contents(loop.learner.program, loop.state, loop.history.memory()),
        "optimizer": loop.learner.optimizer.state_dict(),
        "scheduler": None if loop.scheduler is None else loop.scheduler.state_dict(),
        "progress": dict(vars(loop.progress)),
        "kept": loop.kept,
    }


def _remember(loop: Loop, memory: dict[str, Any]) -> None:
    device = next(loop.learner.program.parameters()).device
    memory = pytree.tree_map_only(Tensor, lambda t: t.to(device), memory)
    restore(loop.learner.program, memory)
    loop.learner.optimizer.load_state_dict(memory["optimizer"])
    loop.state = State(**memory["state"])
    if loop.scheduler is not None:
        loop.scheduler.load_state_dict(memory["scheduler"])
    loop.history.remember(memory["history"])
    loop.progress, loop.kept = Progress(**memory["progress"]), memory["kept"]


def _obey(ranks: Ranks, loop: Loop) -> None:
    """End the training after this step, where one of the processes caught a signal."""
    if ranks.wished:
        name, number = signal.Signals(ranks.wished).name, ranks.wished
        said = (
            f"stopped by {name} after step {loop.progress.steps}; nothing was saved, as no out is"
        )
        if number != signal.SIGINT:
            raise Terminated(said, None, number)
        raise KeyboardInterrupt(said)
