"""Groups of parameters: what is measured together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.densities.look import looking
from pyro_vae.densities.sites import values_of
from pyro_vae.densities.traces import sites_of, sites_of_both
from pyro_vae.program.calling import trainable
from pyro_vae.program.rows import Rows

Groups = dict[str, list[str]]  # group -> names of its parameters


def parts_of(
    program: nn.Module, x: Rows, groups: Mapping[str, str] | Callable[[str], str] | None
) -> Groups:
    """Group -> parameters, in the order of the program's."""
    names = list(trainable(program))
    if groups is None:
        group_of: Callable[[str], str] = roles(program, x).__getitem__
    elif callable(groups):
        group_of = groups
    else:
        if not isinstance(groups, Mapping):
            raise TypeError(
                f"groups is {groups!r}, expected a mapping from parameter names to group names, or "
                "a function of a name"
            )
        missing = [name for name in names if name not in groups]
        if missing:
            raise ValueError(
                f'groups has no entry for parameter "{missing[0]}", expected one for each of '
                f"{names}"
            )
        group_of = groups.__getitem__
    parts: Groups = {}
    for name in names:
        parts.setdefault(str(group_of(name)), []).append(name)
    return parts


def roles(program: Any, x: Rows) -> dict[str, str]:
    """Parameter -> "model", "guide", "both" or "neither", by what depends on it."""
    params = trainable(program)
    with torch.enable_grad(), looking(program):
        _, model = sites_of_both(program, x, reparameterize=False)
        guide = sites_of(program, "guide", x)  # a flow knows its own draws alone
        by_model = [site.density() for site in model.values()]
        by_guide = [site.density() for site in guide.values()]
        by_guide += values_of(guide).values()  # a point's place

    def reached(terms: list[Tensor]) -> set[str]:
        terms = [term.sum() for term in terms if term.requires_grad]
        if not terms:
            return set()
        grads = torch.autograd.grad(
            torch.stack(terms).sum(), list(params.values()), allow_unused=True, retain_graph=True
        )
        return {name for name, grad in zip(params, grads, strict=True) if grad is not None}

    in_model, in_guide = reached(by_model), reached(by_guide)
    words = {(True, False): "model", (False, True): "guide", (True, True): "both"}
    return {n: words.get((n in in_model, n in in_guide), "neither") for n in params}
