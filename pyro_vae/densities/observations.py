"""Which sites observe the data, and which of them take an entry of the data as it is.

A model may observe in several sites (an image and its label), and a site may observe a part or a
function of the data.  All of that is trained and scored.  Where *new* data are to be made of draws
(the sleep phase of wake-sleep), each site must take an entry of ``x`` itself, because a draw of a
function of x is no draw of x.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from pyro_vae.densities.plates import key_of
from pyro_vae.densities.sites import Site, Sites
from pyro_vae.program.rows import Rows, main_entry
from pyro_vae.torch_internals import no_modes

USUAL = "x"

# Where an entry was recognised by its values, which a graph does not have: site -> entry.
_recognised: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()


def observations_of(model: Sites) -> Sites:
    """The sites that observe data, or did before a dream drew them."""
    return {name: site for name, site in model.items() if is_observation(site)}


def is_observation(site: Site) -> bool:
    """Whether a site observes data, or did so before a dream drew them."""
    given = site.observed or site.was_observed
    return given and not (site.is_factor or site.is_deterministic)


def observed_site(program: Any, model: Sites, x: Rows) -> str:
    """The name of the site that observes x: the program's ``observed``, else "x", else any.

    Of several, none of which is called so, the one that takes the first entry of ``x`` as it is, or
    the first.
    """
    said = getattr(program, "observed", None)
    found = observations_of(model)
    for name in (said if isinstance(said, str) else None, USUAL):
        if name is not None and (name in found or name == said):
            return name
    main = next(iter(entries_of_rows(x)))
    taken = entries_of(program, found, x)
    return next((n for n in found if taken[n] == main), next(iter(found), USUAL))


def entries_of_rows(x: Rows) -> dict[str, Tensor]:
    """The tensors that a batch consists of, what is observed first."""
    if not isinstance(x, dict):
        return {USUAL: x}
    main = main_entry(x)
    return {main: x[main], **x}


def entries_of(program: Any, observations: Sites, x: Rows) -> dict[str, str | None]:
    """For each observed site the entry of ``x`` that it takes as it is, or None."""
    known = _recognised.setdefault(key_of(program), {})
    found: dict[str, str | None] = {}
    for name, site in observations.items():
        value = site.given if site.was_observed else site.value
        entries = entries_of_rows(x)
        entry = next((e for e, t in entries.items() if is_x_itself(value, t)), None)
        if entry is None:
            equal = {e: _equal(value, t) for e, t in entries.items()}
            entry = next((e for e, same in equal.items() if same), None)
            if entry is not None:
                known[name] = entry
            elif None in equal.values() and known.get(name) in entries:
                entry = known[name]
        found[name] = entry
    return found


def is_x_itself(value: Any, x: Tensor) -> bool:
    """Whether an observed value is ``x``, or a view of it with the same elements in order."""
    if value is x:
        return True
    return (
        isinstance(value, Tensor)
        and value.dtype == x.dtype
        and value.numel() == x.numel()
        and value.is_contiguous() == x.is_contiguous()
        and getattr(value, "_base", None) is not None
        and (value._base is x or value._base is x._base)
        and value.storage_offset() == x.storage_offset()
    )


def _equal(value: Any, x: Tensor) -> bool | None:
    """Whether an observed value has the numbers of x, such as ``x[rows]`` for all rows in order.

    None where there are no numbers: in a graph, or under a ``vmap``.
    """
    if not isinstance(value, Tensor) or value.numel() != x.numel() or len(value) != len(x):
        return False
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in (value, x)):
        return None
    try:
        with no_modes(), torch.no_grad():
            same = (value.reshape(x.shape) == x) | (value.reshape(x.shape).isnan() & x.isnan())
            return bool(same.all())
    except RuntimeError:
        return None
