"""Several parts for one argument: ``compare`` takes each of them, and every pair of two arguments'.

``--model.prior Laplace --model.prior.scale 2 --model.prior VampPrior`` are two priors, and an
option belongs to the part that was named last before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pyro_vae.cli.building import FOLDERS

Pairs = list[tuple[str, str | None]]  # flags as they were given


def alternatives(pairs: Sequence[tuple[str, str | None]], in_config: int = 0) -> list[Pairs]:
    """The command lines that each name one part for an argument, in the order of what was given.

    Args:
        pairs: flags and texts.
        in_config: how many of them, in front, are of the file.  Where the command line names parts
            for an argument, those of the file count no more.

    Raises:
        ValueError: an option ahead of the part that it is of.

    Example:
        >>> alternatives([("model.prior", "A"), ("model.prior.a", "1"), ("model.prior", "B")])
        [[('model.prior', 'A'), ('model.prior.a', '1')], [('model.prior', 'B')]]
    """
    common: Pairs = []
    named: dict[str, list[Pairs]] = {}
    there = {_slot_of(name) for name, _ in pairs[in_config:] if names_a_part(name)}
    for i, (name, text) in enumerate(pairs):
        slot = _slot_of(name)
        if slot is None:
            common.append((name, text))
        elif i < in_config and slot in there:
            continue
        elif names_a_part(name):
            named.setdefault(slot, []).append([(name, text)])
        elif slot not in named:
            raise ValueError(
                f"--{name} stands before the {slot} that it is an option of: name it first, "
                f"--model.{slot} NAME"
            )
        else:
            named[slot][-1].append((name, text))
    return [common + [pair for chosen in one for pair in chosen]
            for one in itertools.product(*named.values())]  # fmt: skip


def _slot_of(name: str) -> str | None:
    model, _, rest = name.partition(".")
    slot = rest.partition(".")[0]
    return slot if model == "model" and slot in FOLDERS else None


def names_a_part(name: str) -> bool:
    """Whether it names a part of the model, and is no option of one."""
    slot = _slot_of(name)
    return slot is not None and name in (f"model.{slot}", f"model.{slot}.name")
