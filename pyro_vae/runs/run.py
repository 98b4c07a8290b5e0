"""What a training leaves: the program, its history, and what made them; saved and read back."""

from __future__ import annotations

import importlib
import math
import pkgutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_vae.errors import PyroVaeWarning, users_line
from pyro_vae.noise import Stream, seeded
from pyro_vae.objectives.base import EMPTY, State
from pyro_vae.program.calling import materialize
from pyro_vae.recording import differences
from pyro_vae.recording.listing import called, rebuilt_all
from pyro_vae.runs.history import History
from pyro_vae.runs.manifest import parts_record, source_digest
from pyro_vae.runs.schema import Bounded, read_run
from pyro_vae.runs.writer import sole_writer


@dataclass
class Run:
    """What ``fit`` returns.

    Attributes:
        program: the program that was passed, trained; its weights are those of step
            ``manifest["kept_step"]``.
        history: a data frame, one row a record: step, samples, seconds, the objective's columns
            averaged since the record before (nats per datum), gradient norm, held-out bound.
        manifest: data digest, binarization, seed, engine, versions and settings.
        state: the objective's memory.
    """

    program: nn.Module
    history: Any
    manifest: dict[str, Any]
    state: State = EMPTY

    def __repr__(self) -> str:
        best = self.manifest.get("keep") == "best"
        step = self.manifest.get("kept_step")
        records = self.history[self.history.step == step] if best else self.history
        last = records.iloc[-1] if len(records) else {}
        shown = [
            f"{name} {last[name]:.2f}" for name in ("bound", "validation_bound") if name in last
        ]
        where = f"; best weights, of step {step} of {self.manifest['steps']}" if best else ""
        return (
            f"Run({self.manifest['objective']} on {self.manifest['program']}: "
            f"{self.manifest['samples']} samples in {self.manifest['seconds']:.1f} s; "
            f"{', '.join(shown) or 'no bound'}{where})"
        )

    def save(self, path: str | Path) -> None:
        """Write to a folder what ``pv.load(path)`` reads (to go on later, pass ``out`` to fit)."""
        from pyro_vae.runs.run import save_run  # which loads runs, and so imports this file

        save_run(self, path)


# --- saving -------------------------------------------------------------------------------------


def contents(program: nn.Module, state: State, history: dict[str, Any]) -> dict[str, Any]:
    """What ``load`` brings back."""
    return {
        "build": getattr(program, "build_record", None),
        "parameters": dict(program.named_parameters()),
        "buffers": dict(program.named_buffers()),
        "state": {"rows": state.rows, "shared": state.shared},
        "history": history,
    }


def save_run(run: Run, path: str | Path) -> None:
    """Write what :func:`load` brings back; without the optimizer there is no going on from it."""
    history = {"records": run.history.to_dict("records"), "sums": {}, "counts": {}}
    with sole_writer(path, resume=False) as writer:
        writer.save({"manifest": run.manifest, **contents(run.program, run.state, history)})


def load(path: str | Path, program: nn.Module | None = None) -> Run:
    """Read a run back: trained program, history, manifest and the objective's state.

    Args:
        path: the folder, ``out`` of ``pv.fit`` or the argument of ``Run.save``.
        program: a program of the same form, which takes the saved parameters.  It may be left
            out where a ``build`` of ``pyro_vae.models`` made the saved one from plain options and
            parts of ours, such as ``prior=pv.priors.StandardNormal(2, 0.5)``.

    Returns:
        :class:`~pyro_vae.Run`, its parameters in their saved precision: those of the best
        evaluation where ``keep="best"`` was asked for (``manifest["kept_step"]`` says), of an
        unfinished run those of the best so far.

    Raises:
        ValueError: no checkpoint; a damaged one, by file and tensor; or a program whose
            parameters have other names or shapes, or that cannot be built by name.

    Warns:
        PyroVaeWarning: the program that was passed is written otherwise than the saved one, or has
            other options.

    A checkpoint never chooses what is imported: it can name files of ``pyro_vae.models``, and
    classes that are found by listing the folders of parts.
    """

    folder = Path(path)
    saved = read_run(folder)
    saved |= saved.get("best", {})  # what the run was to end with, where that is not the last
    manifest = saved["manifest"]
    by_name = False
    if program is None:
        program, by_name = _built(folder, saved), True
    missing = saved["parameters"].keys() - dict(program.named_parameters()).keys()
    if missing and all(name.startswith(("created.", "autoguide.")) for name in missing):
        program.to(dtype=getattr(torch, manifest["dtype"]))
        rows = min(manifest["batch_size"], manifest["num_data"])  # there may be one for each
        try:
            materialize(program, _zeros(manifest["row"], rows))  # the first run makes them
        except (RuntimeError, IndexError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{folder} holds rows that this program does not take: {why}"
            ) from error
    if wrong := misfits(program, saved):
        raise ValueError(
            f"{folder} holds another program: {'; '.join(wrong)}: build it with the same options"
        )
    mine = {"program": type(program).__name__, "source_digest": source_digest(program)}
    changed = [f"{n} is {v}, was {manifest[n]}" for n, v in mine.items() if v != manifest[n]]
    other = differences(parts_record(program), manifest["parts"], between=", was ", values=False)
    if by_name and other:
        raise _pass_it(f"{folder} holds a {manifest['program']} that was changed after it was built"
                       f" ({'; '.join(other)})")  # fmt: skip
    changed += other
    if changed:
        warn(f"{folder} was saved by a program that was written otherwise: {'; '.join(changed)}")
    restore(program, saved)
    history = History()
    history.remember(saved["history"])
    return Run(program, history.frame(), manifest, State(**saved["state"]))


def _built(folder: Path, saved: dict[str, Any]) -> nn.Module:
    """The program of a record, by a ``build`` from the folder of ``pyro_vae.models``."""
    record, kind = saved["build"], saved["manifest"]["program"]
    from pyro_vae.models import __path__ as places

    if record is None:
        raise _pass_it(f"{folder} holds a {kind} that no build of pyro_vae.models has made")
    known = [module.name for module in pkgutil.iter_modules(places)]
    if record["model"] not in known:
        raise _pass_it(
            f"{folder} names the model {record['model']!r}, known are {', '.join(known)}"
        )
    module = importlib.import_module(f"pyro_vae.models.{record['model']}")
    try:
        tensors = {**saved["parameters"], **saved["buffers"]}
        with seeded(*Stream.PARAMETERS.key(0)), Bounded(tensors):
            return called(module.build, rebuilt_all(record.get("options")), record["model"])
    except ValueError as error:
        raise _pass_it(f"{folder} holds a {kind} that cannot be built by name: {error}") from error


def _pass_it(why: str) -> ValueError:
    return ValueError(f"{why}: build it as it was and pass it, pv.load(path, program=mine)")


MOST_ZEROS = 1 << 24


def _zeros(form: dict[str, Any], rows: int) -> Any:
    if isinstance(form.get("dtype"), str):
        shape, dtype = (rows, *form["shape"]), getattr(torch, form["dtype"])
        if math.prod(shape) <= MOST_ZEROS:
            return torch.zeros(shape, dtype=dtype)
        return torch.zeros((), dtype=dtype).expand(shape)  # which takes no memory
    return {name: _zeros(entry, rows) for name, entry in form.items()}


def misfits(program: nn.Module, saved: dict[str, Any]) -> list[str]:
    """Where names and shapes of a program's tensors differ from the saved ones."""
    own = {**dict(program.named_parameters()), **dict(program.named_buffers())}
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    found = {n: tuple(v.shape) for n, v in {**saved["parameters"], **saved["buffers"]}.items()}
    return [
        f'"{name}" has shape {shapes.get(name, "none")}, the checkpoint {found.get(name, "none")}'
        for name in {**found, **shapes}
        if shapes.get(name) != found.get(name)
    ]


def restore(program: nn.Module, saved: dict[str, Any]) -> None:
    found = {**saved["parameters"], **saved["buffers"]}
    with torch.no_grad():
        for name, value in [*program.named_parameters(), *program.named_buffers()]:
            value.data = value.data.to(found[name].dtype)  # in place: optimizers know the object
            value.copy_(found[name])


def warn(message: str) -> None:
    warnings.warn(message, PyroVaeWarning, stacklevel=users_line())
