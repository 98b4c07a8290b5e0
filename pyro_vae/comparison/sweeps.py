"""The runs of a comparison as cells of a sweep: each is trained and scored by some worker."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pyro_vae.cluster import folder_of, sweep
from pyro_vae.objectives.base import objective_record
from pyro_vae.recording import form_of
from pyro_vae.runs.manifest import data_digest, parts_record, source_digest
from pyro_vae.runs.run import Run, load
from pyro_vae.runs.storage import tensor_digest

Key = tuple[str, str, int]
Score = dict[str, np.ndarray]
Work = Callable[..., tuple[Run, Score]]


def swept(
    work: Work,
    keys: Sequence[Key],
    *,
    fresh: Callable[[Key], nn.Module],
    data: Any,
    settings: Mapping[Key, Mapping[str, Any]],
    cluster: Any,
    out: str | Path | None,
    arrived: Callable[[Key, Score], Any] | None,
) -> tuple[dict[Key, Run], dict[Key, Score]]:
    """Runs and scores by (model, objective, seed), each from a cell of its own.

    Args:
        work: ``work(key, folder, data)`` trains in a folder, going on from what is there, and
            scores.
        keys: which there are.
        fresh: the untrained program of a key.
        data: with ``train``, ``validation`` and ``test``.
        settings: what else a cell's result follows from.
        cluster, out: as of :func:`pyro_vae.cluster.sweep`; without ``out`` results are dropped
            once they are here.
        arrived: called with each result as it comes.
    """
    runs: dict[Key, Run] = {}
    scores: dict[Key, Score] = {}
    names = {_name(key): key for key in keys}
    data_said = {
        part: None if value is None else data_digest(value)
        for part in ("train", "validation", "test")
        for value in [getattr(data, part)]
    }
    made_of = {
        name: _digest({"data": data_said, **settings[key]}, fresh(key))
        for name, key in names.items()
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()) if out is None else out)
        if out is not None:
            stack.enter_context(_saying(folder))
        for name, score in sweep(
            _train_and_score, names, out=folder, cluster=cluster, shared=(work, data),
            made_of=made_of,
        ):  # fmt: skip
            key = names[name]
            runs[key] = load(folder / folder_of(name) / "run", program=fresh(key))
            scores[key] = score
            if arrived is not None:
                arrived(key, score)
    return {key: runs[key] for key in keys}, {key: scores[key] for key in keys}


@contextmanager
def _saying(folder: Path) -> Iterator[None]:
    """Where what is done lies, if it ends with an error."""
    try:
        yield
    except Exception as error:
        if folder.exists():
            error.add_note(f"what is done lies in {folder}")
        raise


def _train_and_score(key: Key, folder: Path, work: Work, data: Any) -> Score:
    return work(key, folder / "run", data)[1]


def _name(key: Key) -> str:
    model, objective, seed = key
    return f"{model}, {objective}, seed {seed}"


def _digest(settings: Mapping[str, Any], program: nn.Module) -> str:
    """Of all that a result follows from, as far as it can be told."""
    said = {name: _form(value) for name, value in settings.items()}
    said |= {"source": source_digest(program), "parts": parts_record(program)}
    said["start"] = [tensor_digest(n, p.detach()) for n, p in program.named_parameters()]
    text = json.dumps(said, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def _form(value: Any) -> Any:
    from pyro.infer.elbo import ELBO

    return objective_record(value) if isinstance(value, ELBO) else form_of(value)
