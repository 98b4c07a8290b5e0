"""Arrays as variables with named dimensions: what a store takes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pyro_vae.inference_data.draws import Groups, as_array
from pyro_vae.inference_data.judging import Terms
from pyro_vae.inference_data.naming import Naming, written

TABLES = ("sample_stats", "log_likelihood")  # one number a draw and datum


class Variable(NamedTuple):
    dims: tuple[str, ...]
    values: np.ndarray
    attrs: Mapping[str, Any] = {}


Variables = dict[str, Variable]


def in_chains(parts: Sequence[np.ndarray], chains: int) -> np.ndarray:
    """Draws (K, ...) of one program dealt to chains, or those of several, one chain each."""
    if len(parts) > 1:
        return np.stack(parts)
    return parts[0].reshape(chains, -1, *parts[0].shape[1:])


def draws(
    parts: Sequence[Groups], chains: int, naming: Naming, *, of_data: bool = True
) -> dict[str, Variables]:
    """The groups of one batch, of each program."""
    found: dict[str, Variables] = {}
    rows = ("data",) if of_data else ()
    for group, values in parts[0].items():
        few = 1 if group.startswith("prior") else chains
        found[group] = {
            written(name): Variable(
                ("chain", "draw", *rows, *(() if group in TABLES else naming.dims(name))),
                in_chains([part[group][name] for part in parts], few),
            )
            for name in values
        }
    return found


def statistics(
    parts: Sequence[Mapping[str, np.ndarray]], rows: tuple[str, ...] = ("data",)
) -> Variables:
    """What is said of a datum, and of each program where there are several."""
    several = len(parts) > 1
    return {
        name: Variable(
            ("chain", *rows) if several else rows,
            np.stack([part[name] for part in parts]) if several else parts[0][name],
        )
        for name in parts[0]
    }


def kl_terms(parts: Sequence[Mapping[str, np.ndarray]], terms: Terms, naming: Naming) -> Variables:
    """KL terms by latent, of each coordinate where these are independent."""
    found = {}
    for name, variable in terms.names.items():
        rows = () if terms.is_global[name] else ("data",)
        dims, values, _ = statistics([{variable: part[name]} for part in parts], rows)[variable]
        own = naming.dims(name) if terms.by_coordinate[name] else ()
        about = {"unit": "nats", "estimate": terms.how[name]}
        found[written(variable)] = Variable((*dims, *own), values, about)
    return found


def whole(values: Mapping[str, Any], naming: Naming, *, of_data: bool = True) -> Variables:
    """Data: (N, ...), or what all of them share."""
    rows = ("data",) if of_data else ()
    return {
        written(name): Variable((*rows, *naming.dims(name)), as_array(value))
        for name, value in values.items()
    }
