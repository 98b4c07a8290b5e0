"""Checkpoints: a run on disk that is whole or refused, and goes on as if never interrupted.

A folder holds two files::

    checkpoint.json               settings, numbers, history, and a sha256 of every tensor
    tensors-<digest>.safetensors  parameters, buffers, states of optimizer and objective

The tensors are written first, under a name that their content decides; the manifest comes last
and names them.  Each file is written beside its place, brought to the disk (fsync), and only then
renamed, so a crash at any moment leaves the checkpoint before it.  There is no pickle: reading
runs nothing, and a program is built by a file of ``pyro_vae.models`` or passed by the user.

The noise and the minibatches of a step follow from (seed, step), so no generator's state is kept;
a resumed run ends with the bits of an uninterrupted one at the same number of threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import pkgutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.errors import PyroVaeWarning
from pyro_vae.history import History, source_digest
from pyro_vae.interrupts import interruption, noted_signals
from pyro_vae.loop import Loop
from pyro_vae.noise import seeded
from pyro_vae.objectives.base import State
from pyro_vae.program import materialize
from pyro_vae.runs import Run
from pyro_vae.storage import MANIFEST, pack, read, write

# A run that goes on must have these in common with the one that was saved.
SETTINGS = (
    "program", "dtype", "data_digest", "num_data", "objective", "engine", "seed", "batch_size",
    "optimizer", "schedule", "clip", "weight_prior", "validation_digest",
)  # fmt: skip
SURROUNDINGS = ("threads", "device", "source_digest", "torch")  # these only change the last bits
SWITCHES = ("fused", "foreach", "capturable")  # how an optimizer computes, not what
_fields = [f.name for f in dataclasses.fields(Loop)]
MEMORY = _fields[_fields.index("history") + 1 :]  # of the loop


# --- saving -------------------------------------------------------------------------------------


def folder_for(out: str | Path, *, resume: bool) -> Path:
    """The folder of a run, made before any work is done.

    Raises:
        ValueError: it cannot be made or written; or it holds a run that would be lost.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out={str(out)!r}: {error.strerror}, name another folder") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"out={str(out)!r} cannot be written, name another folder")
    if not resume and (folder / MANIFEST).exists():
        raise ValueError(
            f"out={str(out)!r} holds a saved run, which would be lost: pass resume=True to "
            "pv.fit to go on from it, or name another folder"
        )
    return folder


@contextlib.contextmanager
def keeping(
    loop: Loop, manifest: dict[str, Any], num_steps: int, folder: Path | None, every: float | None
) -> Iterator[None]:
    """Save ``loop`` after steps where that is due, when a signal asks, and at the end."""
    if folder is None:
        yield
        return
    before, saved_at, cost = loop.steps_done, time.monotonic(), 0.0
    pack(_resumable(loop), "", {})  # what cannot be saved is refused before the first step

    def save() -> None:
        nonlocal saved_at, cost
        started = time.monotonic()
        progress = {**loop.progress(), "stopped": loop.ended(num_steps) or "unfinished"}
        write(folder, {"manifest": {**manifest, **progress}, **_resumable(loop)})
        saved_at = time.monotonic()
        cost = saved_at - started

    def after_step(_: Loop) -> None:
        if every is None:  # about once a minute, and at most 2% of the time
            due = time.monotonic() - saved_at >= max(60.0, 50 * cost)
        elif isinstance(every, int):
            due = loop.steps_done % every == 0
        else:
            due = time.monotonic() - saved_at >= every
        if due or caught:
            save()
        if caught:
            raise interruption(caught[0], loop.steps_done, folder)

    loop.after_step = after_step
    loop.pause_every = every if isinstance(every, int) else 0
    with noted_signals() as caught:
        yield
        if loop.steps_done > before or not before:
            save()
    if caught:
        raise interruption(caught[0], loop.steps_done, folder)


def contents(program: nn.Module, state: State, history: dict[str, Any]) -> dict[str, Any]:
    """What ``load`` brings back."""
    return {
        "build": getattr(program, "build_record", None),
        "parameters": dict(program.named_parameters()),
        "buffers": dict(program.named_buffers()),
        "state": {"rows": state.rows, "shared": state.shared},
        "history": history,
    }


def _resumable(loop: Loop) -> dict[str, Any]:
    return {
        **contents(loop.program, loop.state, loop.history.memory()),
        "optimizer": loop.optimizer.state_dict(),
        "scheduler": None if loop.scheduler is None else loop.scheduler.state_dict(),
        "loop": {name: getattr(loop, name) for name in MEMORY},
    }


# --- coming back --------------------------------------------------------------------------------


def engine_of(folder: Path) -> str | None:
    """The engine of the run that a folder holds: "auto" goes on with it under any budget."""
    try:
        return json.loads((folder / MANIFEST).read_text())["manifest"]["engine"]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # nothing there, or damaged: `go_on` says which


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
    wrong += _misfits(loop.program, saved)
    if (done := saved["loop"]["steps_done"]) > num_steps:
        wrong.append(f"the budget is {num_steps} steps, the checkpoint has taken {done}")
    if wrong:
        raise ValueError(
            f"{folder} holds another run: {'; '.join(wrong)}: pass the settings of the "
            "checkpoint and no smaller budget, or name another folder as out"
        )
    here, there = ({**m, "torch": m["versions"]["torch"]} for m in (manifest, theirs))
    changed = [f"{n} is {here[n]}, was {there[n]}" for n in SURROUNDINGS if here[n] != there[n]]
    if changed:
        _warn(f"{folder} goes on where {'; '.join(changed)}: expect other last bits than those "
              "of an uninterrupted run", stacklevel=4)  # fmt: skip
    _restore_optimizer(loop.optimizer, saved["optimizer"])
    _restore(loop.program, saved)
    device = next(loop.program.parameters()).device
    parts = zip(loop.state, (saved["state"]["rows"], saved["state"]["shared"]), strict=True)
    loop.state = State(
        *({n: v.to(own[n].device if n in own else device) for n, v in kept.items()}
          for own, kept in parts)
    )  # fmt: skip
    if loop.scheduler is not None:
        loop.scheduler.load_state_dict(saved["scheduler"])
    loop.history.remember(saved["history"])
    for name, value in saved["loop"].items():
        setattr(loop, name, value.to(device) if isinstance(value, Tensor) else value)


def _settings(manifest: dict[str, Any]) -> dict[str, Any]:
    options = {f"optimizer {n}": value for n, value in manifest["optimizer_options"].items()}
    return {**{name: manifest[name] for name in SETTINGS}, **options}


def save_run(run: Run, path: str | Path) -> None:
    """Write what :func:`load` brings back; without the optimizer there is no going on from it."""
    history = {"records": run.history.to_dict("records"), "sums": {}, "counts": {}}
    folder = folder_for(path, resume=False)
    write(folder, {"manifest": run.manifest, **contents(run.program, run.state, history)})


def load(path: str | Path, program: nn.Module | None = None) -> Run:
    """Read a run back: trained program, history, manifest and the objective's state.

    Args:
        path: the folder, ``out`` of ``pv.fit`` or the argument of ``Run.save``.
        program: a program of the same form, which takes the saved parameters.  It may be left
            out where a ``build`` of ``pyro_vae.models`` made the saved one from plain options.

    Returns:
        :class:`~pyro_vae.Run`, its parameters in their saved precision.

    Raises:
        ValueError: no checkpoint; a damaged one, by file and tensor; or a program whose
            parameters have other names or shapes.

    A checkpoint never chooses what is imported: it can name files of ``pyro_vae.models`` alone.
    """

    folder = Path(path)
    saved = read(folder)
    manifest = saved["manifest"]
    if program is None:
        program = _built(folder, saved["build"], manifest["program"])
    missing = saved["parameters"].keys() - dict(program.named_parameters()).keys()
    if missing and all(name.startswith("created.") for name in missing):
        program.to(dtype=getattr(torch, manifest["dtype"]))
        materialize(program, _zeros(manifest["row"]))  # pyro.param makes them at the first run
    if wrong := _misfits(program, saved):
        raise ValueError(
            f"{folder} holds another program: {'; '.join(wrong)}: build it with the same options"
        )
    mine = {"program": type(program).__name__, "source_digest": source_digest(program)}
    changed = [f"{n} is {v}, was {manifest[n]}" for n, v in mine.items() if v != manifest[n]]
    if changed:
        _warn(f"{folder} was saved by a program that was written otherwise: {'; '.join(changed)}")
    _restore(program, saved)
    history = History()
    history.remember(saved["history"])
    return Run(program, history.frame(), manifest, State(**saved["state"]))


def _built(folder: Path, record: dict[str, Any] | None, kind: str) -> nn.Module:
    """The program of a record, by a ``build`` from the folder of ``pyro_vae.models``."""
    from pyro_vae import models

    if record is None:
        raise ValueError(
            f"{folder} holds a {kind} with parts of your own, so it cannot be built from its "
            "name: build it as it was and pass it, pv.load(path, program=mine)"
        )
    known = [module.name for module in pkgutil.iter_modules(models.__path__)]
    if record["model"] not in known:
        raise ValueError(
            f"{folder} names the model {record['model']!r}, known are {', '.join(known)}: "
            "pass the program, pv.load(path, program=mine)"
        )
    module = importlib.import_module(f"pyro_vae.models.{record['model']}")
    with seeded(0):
        return module.build(**record["options"])


def _zeros(form: dict[str, Any]) -> Any:
    if isinstance(form.get("dtype"), str):
        return torch.zeros((2, *form["shape"]), dtype=getattr(torch, form["dtype"]))
    return {name: _zeros(entry) for name, entry in form.items()}


def _misfits(program: nn.Module, saved: dict[str, Any]) -> list[str]:
    """Where names and shapes of a program's tensors differ from the saved ones."""
    own = {**dict(program.named_parameters()), **dict(program.named_buffers())}
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    found = {n: tuple(v.shape) for n, v in {**saved["parameters"], **saved["buffers"]}.items()}
    return [
        f'"{name}" has shape {shapes.get(name, "none")}, the checkpoint {found.get(name, "none")}'
        for name in {**found, **shapes}
        if shapes.get(name) != found.get(name)
    ]


def _restore(program: nn.Module, saved: dict[str, Any]) -> None:
    found = {**saved["parameters"], **saved["buffers"]}
    with torch.no_grad():
        for name, value in [*program.named_parameters(), *program.named_buffers()]:
            value.data = value.data.to(found[name].dtype)  # in place: optimizers know the object
            value.copy_(found[name])


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        group |= {name: own[name] for name in SWITCHES if name in own}  # of this device
    optimizer.load_state_dict(saved)
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    for slot, parameter in enumerate(parameters):
        for name, value in saved["state"].get(slot, {}).items():
            if isinstance(value, Tensor):  # torch gives some the parameter's dtype
                own = optimizer.state[parameter]
                own[name] = value.to(own[name].device)


def _warn(message: str, stacklevel: int = 3) -> None:
    warnings.warn(message, PyroVaeWarning, stacklevel=stacklevel)
