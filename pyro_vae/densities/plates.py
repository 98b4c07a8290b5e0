"""Which plate counts the data: the one that its users named as they liked.

It is the plate that a program names (``pv.Program(..., plate="batch")``), else the one called
"data", else the one around the observed site that has as many members as ``x`` has rows.  Where
two have, the model is run on another number of rows, and the plate whose size follows is it; of
several that follow, the outermost.  What was found is remembered as long as the program lives.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame as Frame
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.noise import LOOK, NoiseMode, keyed, seeded
from pyro_vae.program.arguments import Called
from pyro_vae.program.calling import left_as_it_was
from pyro_vae.program.rows import Rows, map_rows, num_rows
from pyro_vae.torch_internals import no_modes

Role = Literal["guide", "model"]

USUAL = "data"
ANY_SIZE = -1  # what Pyro writes for a plate without a size

_found: weakref.WeakKeyDictionary[Any, dict[Role, str]] = weakref.WeakKeyDictionary()


def rows_plate(program: Any, role: Role, messages: Sequence[Any], x: Rows) -> str | None:
    """The name of the rows' plate among the messages of one run; None where there is none.

    Args:
        program: has ``model`` and ``guide``, and perhaps a name ``plate``.
        role: which of them left the messages.
        messages: Pyro's, of its sample sites.
        x: the rows.

    Raises:
        ValueError: where the program names a plate that its model does not have.
    """
    said = plate_named_by(program)
    names = {frame.name for message in messages for frame in message["cond_indep_stack"]}
    for name in (said, USUAL):
        if name in names:
            return name
    if not names:
        return None
    if said is not None and role == "model":
        raise ValueError(
            f'the program says plate="{said}", expected one of the model\'s plates, '
            f"{', '.join(sorted(names))}: name the one that counts the rows, or leave it out"
        )
    found = _found.setdefault(key_of(program), {})
    if found.get(role) in names:
        return found[role]
    if role == "model":
        name = _around_observations(program, messages, x)
    else:
        if "model" not in found and (run := _run(program, x)):
            rows_plate(program, "model", run, x)
        of_model = found.get("model")
        name = of_model if of_model in names else _first(_counting(messages, x), but=of_model)
    if name is not None and (role == "guide" or any(map(_observes, messages))):
        found[role] = name
    return name


def name_of_rows_plate(program: Any, x: Rows) -> str | None:
    """The same by a run of the model, if need be."""
    found = _found.get(key_of(program), {}).get("model")
    said = plate_named_by(program) or found
    return said or rows_plate(program, "model", _run(program, x), x)


def plate_named_by(program: Any) -> str | None:
    """What the program itself says, where it does."""
    said = getattr(program, "plate", None)
    return said if isinstance(said, str) else None


def key_of(program: Any) -> Any:
    """What lives as long as the program: of two plain functions, the first."""
    if isinstance(program, Called):
        program = program.program
    held = vars(program) if hasattr(program, "__dict__") else {}
    model = held.get("model")
    return program if model is None else getattr(model, "__func__", model)


def _around_observations(program: Any, messages: Sequence[Any], x: Rows) -> str | None:
    seen = [message for message in messages if _observes(message)]
    counting = _counting(seen or messages, x)  # given covariates alone, nothing observes
    if len(counting) > 1:
        more = map_rows(lambda t: torch.cat([t, t[:1]]), _real(x))
        # `as many rows as there are` follows whatever is there
        follows = set(_counting(_run(program, more), more))
        counting = [name for name in counting if name in follows] or counting
    if counting:
        return counting[0]
    # Of another size than x: a mistake, which is told of it and not of "no plate at all".
    around = [frame.name for m in seen for frame in m["cond_indep_stack"]]
    return around[0] if around else None


def _observes(message: Any) -> bool:
    infer = message["infer"] or {}
    given = message["is_observed"] or infer.get("was_observed")
    return bool(given) and not infer.get("_deterministic")


def _counting(messages: Iterable[Any], x: Rows) -> list[str]:
    """Plates with as many members as rows, the outermost first."""
    rows = num_rows(x)
    frames: list[Frame] = [frame for m in messages for frame in m["cond_indep_stack"]]
    names = [f.name for f in frames if f.dim is not None and f.size in (rows, ANY_SIZE)]
    return list(dict.fromkeys(names))


def _first(names: Iterable[str], but: str | None) -> str | None:
    return next((name for name in names if name != but), None)


def _run(program: Any, x: Rows) -> list[Any]:
    """The messages of the model by itself, none where it fails; nothing of it is seen outside."""
    x = _real(x)
    try:
        with (
            no_modes(),
            torch.no_grad(),
            poutine.block(),
            pyro.validation_enabled(False),
            left_as_it_was(program, parameters=False),
            seeded(*LOOK),
            NoiseMode(keyed(*LOOK)),
        ):
            nodes = poutine.trace(program.model).get_trace(x).nodes.values()
    except Exception:  # which whoever runs it for its numbers will see
        return []
    return [n for n in nodes if n["type"] == "sample" and not site_is_subsample(n)]


def _real(x: Rows) -> Rows:
    """Rows of these shapes that hold numbers, also where a graph is being captured."""

    def real(t: Tensor) -> Tensor:
        if type(t) is Tensor or isinstance(t, torch.nn.Parameter):
            return t.detach()
        return torch.ones(t.shape, dtype=t.dtype, device=t.device)

    with no_modes():
        return map_rows(real, x)
