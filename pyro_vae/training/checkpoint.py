"""Checkpoints: a run on disk that is whole or refused, and goes on as if never interrupted.

A folder holds two files::

    checkpoint.json               settings, numbers, history, and a sha256 of every tensor
    tensors-<digest>.safetensors  parameters, buffers, states of optimizer and objective

The tensors are written first, under a name that their content decides; the manifest comes last
and names them.  Each file is written beside its place, brought to the disk (fsync), and only then
renamed, so a crash at any moment leaves the checkpoint before it.  There is no pickle: reading
runs nothing, and a program is built by a file of ``pyro_vae.models`` or passed by the user.

Where the best weights are what a run is to end with, they are a part of their own: what goes on
goes on from the last ones.

The noise and the minibatches of a step follow from (seed, step), so no generator's state is kept;
a resumed run ends with the bits of an uninterrupted one at the same number of threads.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils import _pytree as pytree

from pyro_vae.objectives.base import State
from pyro_vae.optimizers import restore_optimizer
from pyro_vae.recording import differences
from pyro_vae.runs.run import contents, misfits, restore, warn
from pyro_vae.runs.storage import MANIFEST, pack, read, write
from pyro_vae.training.interrupts import interruption, noted_signals
from pyro_vae.training.loop import Loop, Progress

# A run that goes on must have these in common with the one that was saved.
SETTINGS = (
    "program", "dtype", "data_digest", "num_data", "engine", "seed", "batch_size", "optimizer",
    "schedule", "clip", "weight_prior", "validation_digest",
)  # fmt: skip
# These only change the last bits.
SURROUNDINGS = ("threads", "device", "source_digest", "torch", "processes")


@contextlib.contextmanager
def keeping(
    loop: Loop, manifest: dict[str, Any], num_steps: int, folder: Path | None, every: float | None
) -> Iterator[None]:
    """Save ``loop`` after steps where that is due, when a signal asks, and at the end."""
    if folder is None:
        yield
        return
    before, saved_at, cost = loop.progress.steps, time.monotonic(), 0.0
    pack(_resumable(loop), "", {})  # what cannot be saved is refused before the first step

    def save() -> None:
        nonlocal saved_at, cost
        started = time.monotonic()
        reached = {**loop.totals(), "stopped": loop.ended(num_steps) or "unfinished"}
        write(folder, {"manifest": {**manifest, **reached}, **_resumable(loop)})
        saved_at = time.monotonic()
        cost = saved_at - started

    def after_step(_: Loop) -> None:
        if every is None:  # about once a minute, and at most 2% of the time
            due = time.monotonic() - saved_at >= max(60.0, 50 * cost)
        elif isinstance(every, int):
            due = loop.progress.steps % every == 0
        else:
            due = time.monotonic() - saved_at >= every
        if due or caught:
            save()
        if caught:
            raise interruption(caught[0], loop.progress.steps, folder)

    loop.after_step = after_step
    loop.pause_every = every if isinstance(every, int) else 0
    with noted_signals() as caught:
        yield
        if loop.progress.steps > before or not before:
            save()
    if caught:
        raise interruption(caught[0], loop.progress.steps, folder)


def _resumable(loop: Loop) -> dict[str, Any]:
    return {
        **contents(loop.learner.program, loop.state, loop.history.memory()),
        "optimizer": loop.learner.optimizer.state_dict(),
        "scheduler": None if loop.scheduler is None else loop.scheduler.state_dict(),
        "progress": dict(vars(loop.progress)),
        **({} if loop.kept is None else {"best": loop.kept}),
    }


# --- coming back --------------------------------------------------------------------------------


def engine_of(folder: Path) -> str | None:
    """The engine of the run that a folder holds: "auto" goes on with it under any budget."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        return json.loads((folder / MANIFEST).read_text())["manifest"]["engine"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None  # damaged: `go_on` says how


def go_on(folder: Path, loop: Loop, manifest: dict[str, Any], num_steps: int) -> None:
    """Bring ``loop`` to where the checkpoint in ``folder`` was, if there is one.

    Raises:
        ValueError: the checkpoint is damaged, or is of another run; nothing is changed then.
    """
    if not (folder / MANIFEST).exists():
        return
    saved = read(folder)
    if "optimizer" not in saved:
        raise ValueError(f"{folder} was written by Run.save, without the optimizer: use pv.load")
    theirs = saved["manifest"]
    mine, expected = _settings(manifest), _settings(theirs)
    wrong = [f"{name} is {mine[name]!r}, the checkpoint has {expected[name]!r}" for name in mine
             if name in expected and mine[name] != expected[name]]  # fmt: skip
    between = ", the checkpoint has "
    objectives = manifest["objective_record"], theirs["objective_record"]
    wrong += differences(objectives[0], objectives[1], "objective", between=between)
    schedules = manifest["schedule_record"], theirs["schedule_record"]
    if manifest["schedule"] == theirs["schedule"]:
        wrong += differences(schedules[0], schedules[1], "schedule", between=between)
    wrong += differences(manifest["parts"], theirs["parts"], between=between, values=False)
    wrong += misfits(loop.learner.program, saved)
    evaluated = saved["progress"].get("best_step") or saved["progress"]["best"] is not None
    if loop.keep_best and evaluated and "best" not in saved:
        wrong.append('keep is "best", the checkpoint kept the last weights alone')
    if (done := saved["progress"]["steps"]) > num_steps:
        wrong.append(f"the budget is {num_steps} steps, the checkpoint has taken {done}")
    if wrong:
        raise ValueError(
            f"{folder} holds another run: {'; '.join(wrong)}: pass the settings of the "
            "checkpoint and no smaller budget, or name another folder as out"
        )
    here, there = (
        {"processes": 1, **m, "torch": m["versions"]["torch"]} for m in (manifest, theirs)
    )
    changed = [f"{n} is {here[n]}, was {there[n]}" for n in SURROUNDINGS if here[n] != there[n]]
    if changed:
        warn(f"{folder} goes on where {'; '.join(changed)}: expect other last bits than those "
              "of an uninterrupted run", stacklevel=4)  # fmt: skip
    restore_optimizer(loop.learner.optimizer, saved["optimizer"])
    restore(loop.learner.program, saved)
    device = next(loop.learner.program.parameters()).device
    parts = zip(loop.state, (saved["state"]["rows"], saved["state"]["shared"]), strict=True)
    loop.state = State(
        *({n: v.to(own[n].device if n in own else device) for n, v in kept.items()}
          for own, kept in parts)
    )  # fmt: skip
    if loop.scheduler is not None:
        loop.scheduler.load_state_dict(saved["scheduler"])
    if loop.keep_best and "best" in saved:
        loop.kept = pytree.tree_map(lambda t: t.to(device), saved["best"])
    loop.history.remember(saved["history"])
    loop.progress = Progress(**saved["progress"])
    if loop.progress.best is not None:
        loop.progress.best = loop.progress.best.to(device)


def _settings(manifest: dict[str, Any]) -> dict[str, Any]:
    options = {f"optimizer {n}": value for n, value in manifest["optimizer_options"].items()}
    return {**{name: manifest[name] for name in SETTINGS}, **options}
