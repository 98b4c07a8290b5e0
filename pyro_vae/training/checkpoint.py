"""Checkpoints: a run on disk that is whole or refused, and goes on as if never interrupted.

A folder holds::

    checkpoint.json               settings, numbers, history, and a sha256 of every tensor
    tensors-<digest>.safetensors  parameters, buffers, states of optimizer and objective; also
                                  those of the save before, for who reads meanwhile
    .lock, .writer.json           who writes there: one process at a time

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
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_vae import defaults
from pyro_vae.objectives.base import State
from pyro_vae.optimizers import SWITCHES, restore_optimizer, takes_a_step
from pyro_vae.recording import differences
from pyro_vae.runs.run import contents, misfits, restore, warn
from pyro_vae.runs.schema import read_run
from pyro_vae.runs.storage import MANIFEST, MOST_BYTES, read_regular
from pyro_vae.runs.values import pack
from pyro_vae.runs.writer import Writer
from pyro_vae.torch_internals import compiler_left_out
from pyro_vae.training.interrupts import (
    cancelled_elsewhere,
    interruption,
    noted_signals,
    obeyed_between_steps,
)
from pyro_vae.training.loop import Loop, Progress
from pyro_vae.turns import in_turn

# A run that goes on must have these in common with the one that was saved.
SETTINGS = (
    "program", "dtype", "data_digest", "num_data", "engine", "matmul_precision", "seed",
    "batch_size", "optimizer", "schedule", "clip", "weight_prior", "validation_digest", "binarize",
    "row",
)  # fmt: skip
# Of these whatever is in both; what a version before did not write cannot be compared.
RECORDS = {
    "objective_record": "objective", "objective_code": "objective",
    "optimizer_record": "optimizer", "schedule_record": "schedule", "parts": "",
}  # fmt: skip
# These only change the last bits.
SURROUNDINGS = ("threads", "device", "source_digest", "torch", "processes")


@contextlib.contextmanager
def keeping(
    loop: Loop, manifest: dict[str, Any], num_steps: int, writer: Writer | None, every: float | None
) -> Iterator[None]:
    """Save ``loop`` after steps where that is due, when a signal asks, at the end and at an error.

    An error that ends the run is raised as it is, with a note that says where the state lies.
    """
    if writer is None:
        with obeyed_between_steps() as check:
            asked = loop.after_step  # of several processes, what the others wish

            def obey(each: Loop) -> None:
                asked(each)
                check()

            loop.after_step = obey
            yield
        return
    cancelled = cancelled_elsewhere()
    before, saved_at, cost = loop.progress.steps, time.monotonic(), 0.0
    pack(_resumable(loop), "", {})  # what cannot be saved is refused before the first step
    last_saved: int | None = before or None

    def save() -> None:
        in_turn(write_all)  # parameters are swapped while another thread runs the program

    def write_all() -> None:
        nonlocal saved_at, cost, last_saved
        started = time.monotonic()
        _require_finite(loop)
        reached = {**loop.totals(), "stopped": loop.ended(num_steps) or "unfinished"}
        try:
            writer.save({"manifest": {**manifest, **reached}, **_resumable(loop)})
        except OSError as error:
            if getattr(error, "path", None) is not None:
                last_saved = loop.progress.steps
            raise
        last_saved, saved_at = loop.progress.steps, time.monotonic()
        cost = saved_at - started

    def after_step(_: Loop) -> None:
        if every is None:  # about once a minute, and at most 2% of the time
            due = time.monotonic() - saved_at >= max(60.0, 50 * cost)
        elif isinstance(every, int):
            due = loop.progress.steps % every == 0
        else:
            due = time.monotonic() - saved_at >= every
        if cancelled() and not caught:
            caught.append(signal.SIGINT)
        if due or caught:
            save()
        if caught:
            raise interruption(caught[0], loop.progress.steps, writer.folder)

    def rescue(error: BaseException) -> None:
        """Save the last whole step, and say where it lies."""
        if loop.progress.steps > (last_saved or 0) and loop.booked and loop.learner.whole:
            try:
                save()
            except Exception as failed:  # the user's own error is told, and this with it
                error.add_note(f"after step {loop.progress.steps}: {failed}")
        if last_saved is None:
            if loop.progress.steps:
                error.add_note(f"no step of the run that was to be saved in {writer.folder} is")
            return
        place = str(writer.saved_at or writer.folder)
        error.add_note(
            f"the state after step {last_saved} lies in {place}: go on with out={place!r}, "
            "resume=True"
        )
        if isinstance(error, KeyboardInterrupt):
            vars(error).update(path=Path(place), signal=signal.SIGINT)

    loop.after_step = after_step
    loop.pause_every = every if isinstance(every, int) else 0
    with noted_signals() as caught:
        try:
            yield
        except BaseException as error:
            # What is stopped was saved before; and a second signal does not wait.
            if not (caught or isinstance(error, GeneratorExit) or hasattr(error, "path")):
                rescue(error)
            raise
        if loop.progress.steps > before or not before:
            save()
    if caught:
        raise interruption(caught[0], loop.progress.steps, writer.folder)


def _require_finite(loop: Loop) -> None:
    """Refuse to save what is no number, over what is.

    Raises:
        ValueError: naming the parameter, or the optimizer's tensor.
    """
    tensors = dict(loop.learner.parameters)
    for name, p in loop.learner.parameters.items():
        for kind, value in loop.learner.optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{kind} of {name}"] = value
    bad = [name for name, value in tensors.items() if not value.isfinite().all()]
    if bad:
        raise ValueError(
            f'"{bad[0]}" is infinite or nan after step {loop.progress.steps}, and is not saved: '
            "lower lr, or look at what changes it besides the optimizer"
        )


@compiler_left_out()
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
    try:
        engine = json.loads(read_regular(folder / MANIFEST, MOST_BYTES))["manifest"]["engine"]
        return engine if isinstance(engine, str) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None  # damaged: `go_on` says how


def go_on(folder: Path, loop: Loop, manifest: dict[str, Any], num_steps: int) -> None:
    """Bring ``loop`` to where the checkpoint in ``folder`` was, if there is one.

    Raises:
        ValueError: the checkpoint is damaged, or is of another run; nothing is changed then.
    """
    if not os.path.lexists(folder / MANIFEST):
        warn(f"{folder} holds no run yet: resume=True starts anew")
        return
    saved = read_run(folder)
    if "optimizer" not in saved:
        raise ValueError(f"{folder} was written by Run.save, without the optimizer: use pv.load")
    theirs = saved["manifest"]
    before = {"matmul_precision": defaults.MATMUL_PRECISION}  # of runs that do not say
    mine, expected = _settings(manifest), before | _settings(theirs)
    wrong = [f"{name} is {mine[name]!r}, the checkpoint has {expected[name]!r}" for name in mine
             if name in expected and mine[name] != expected[name]]  # fmt: skip
    between = ", the checkpoint has "
    for record, name in RECORDS.items():
        told = name in SETTINGS and manifest[name] != theirs[name]  # another class altogether
        if record in theirs and not told:
            wrong += differences(
                manifest[record], theirs[record], name, between=between, values=record != "parts"
            )
    watched = loop.keep_best or loop.patience is not None or loop.scheduler_is_told
    if watched and "evaluate_every" in theirs:  # which decides what is kept, and when it ends
        asked = manifest["evaluate_every"], theirs["evaluate_every"]
        if asked[0] != asked[1]:
            wrong.append(f"evaluate_every is {asked[0]}{between}{asked[1]}")
    wrong += misfits(loop.learner.program, saved)
    wrong += _misfits_of_states(loop, saved)
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
              "of an uninterrupted run")  # fmt: skip
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
    loop.collapse.remember(saved["history"]["records"])
    loop.progress = Progress(**saved["progress"])
    if loop.progress.best is not None:
        loop.progress.best = loop.progress.best.to(device)


def _settings(manifest: dict[str, Any]) -> dict[str, Any]:
    options = {f"optimizer {n}": value for n, value in manifest["optimizer_options"].items()}
    return {**{name: manifest[name] for name in SETTINGS if name in manifest}, **options}


def _misfits_of_states(loop: Loop, saved: dict[str, Any]) -> list[str]:
    """Where states of objective, optimizer and schedule are not those of this run."""
    wrong = []
    for part, own in loop.state._asdict().items():
        shapes = [{n: tuple(t.shape) for n, t in s.items()} for s in (own, saved["state"][part])]
        if shapes[0] != shapes[1]:
            wrong.append(f"the state of {part} is {shapes[0]}, the checkpoint has {shapes[1]}")
    optimizer = loop.learner.optimizer
    slots = [p for group in optimizer.param_groups for p in group["params"]]
    states = saved["optimizer"]["state"]
    torchs = type(optimizer).__module__.startswith("torch.optim")  # which fill all states or none
    for slot, state in states.items():
        taken = state.get("step") if torchs else None
        if isinstance(taken, Tensor):
            taken = taken.item() if taken.numel() == 1 else -1
        late = isinstance(taken, (int, float)) and not 0 <= taken <= saved["progress"]["steps"]
        if late or (torchs and not state and any(states.values())):
            wrong.append(f"the optimizer's state of parameter {slot} is none of this run")
            continue
        for name, value in state.items():
            fits = slot < len(slots) and (
                name not in OF_A_PARAMETER
                or (isinstance(value, Tensor) and value.shape == slots[slot].shape)
            )
            if not fits:
                wrong.append(f"the optimizer's {name} of parameter {slot} is none of this run")
    groups = zip(optimizer.param_groups, saved["optimizer"]["param_groups"], strict=False)
    for own, kept in groups:
        names = (own.keys() ^ kept.keys()) - {*SWITCHES}
        if names or any(_kind(own[n]) != _kind(kept[n]) for n in own.keys() - {*SWITCHES}):
            wrong.append("the optimizer's options are none of this run")
    if not wrong and not takes_a_step(optimizer, saved["optimizer"]):
        wrong.append(f"the optimizer's state is none of {type(optimizer).__name__}'s")
    mine = None if loop.scheduler is None else loop.scheduler.state_dict()
    if (mine is None) != (saved["scheduler"] is None) or (
        mine is not None and mine.keys() != saved["scheduler"].keys()
    ):
        wrong.append("the schedule's state is none of this run")
    return wrong


# What torch's optimizers remember entry by entry.
OF_A_PARAMETER = (
    "sum", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "acc_delta",
    "grad_avg", "exp_inf", "prev", "step_size", "ax",
)  # fmt: skip


def _kind(value: Any) -> Any:
    """Numbers are of one kind, whole or not, and also as a tensor."""
    return float if isinstance(value, (int, float, Tensor)) else type(value)
