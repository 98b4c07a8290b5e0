"""Replicas: what is given for one run or for each of R, as R of everything."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from pyro_vae import errors
from pyro_vae.program.calling import require_program


def is_several(value: Any) -> bool:
    """Whether it is one of each replica."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def side_by_side(
    program: Any, options: dict[str, Any], replicas: int | None
) -> tuple[list[nn.Module], list[dict[str, Any]]]:
    """R programs, and the options of each."""
    seed, lr = options["seed"], options["lr"]
    lengths = {
        name: len(value)
        for name, value in (("program", program), ("seed", seed), ("lr", lr))
        if is_several(value)
    }
    if replicas is not None:
        lengths["replicas"] = errors.whole("replicas", replicas)
    count = next(iter(lengths.values()))
    if len(set(lengths.values())) > 1 or count < 1:
        raise ValueError(f"replicas are counted as {lengths}, expected one whole number from 1 on")
    for name in ("out", "early_stopping"):
        if options[name]:
            raise ValueError(
                f"{name} is {options[name]!r} with replicas, expected None: save them afterwards, "
                "run.save(path), or train one at a time"
            )
    programs = list(program) if is_several(program) else [program]
    for each in programs:
        require_program(each)
    if len({id(p) for p in programs}) < len(programs):
        raise ValueError("program holds one program twice, expected one for each replica")
    programs += [copy.deepcopy(program) for _ in range(count - len(programs))]
    seeds = seed if is_several(seed) else [errors.seed_number(seed) + r for r in range(count)]
    rates = lr if is_several(lr) else [lr] * count
    each_options = [options | {"seed": s, "lr": r} for s, r in zip(seeds, rates, strict=True)]
    return programs, each_options
