"""``pyro-vae parts``."""

from __future__ import annotations

import inspect
import json
import textwrap
from typing import Any

from pyro_vae.cli.building import FOLDERS, NO_FLAGS
from pyro_vae.cli.flags import Flag, explained, kind_of, nearest, plain

SLOTS = {folder: slot for slot, folder in FOLDERS.items() if folder.startswith(slot)}


def run_parts(name: str | None = None, /) -> int:
    """List priors, likelihoods, posteriors and networks, or show the options of one.

    --model.prior NAME puts one into a model; pyro-vae parts priors lists those of a folder.
    """
    from pyro_vae.recording.listing import classes_in

    known = {folder: classes_in(folder) for folder in SLOTS}
    found = [(f, each[name]) for f, each in known.items() if name in each]
    if found:
        print("\n\n".join(_shown(folder, name or "", cls) for folder, cls in found))
        return 0
    if name is not None and name not in known:
        names = {n: None for each in known.values() for n in each}  # in their order, once
        raise ValueError(nearest(name, [*known, *names]))
    folders = known if name is None else {name: known[name]}
    blocks = []
    for folder, classes in folders.items():
        rows = [(n, _where(folder, c), _first(c)) for n, c in classes.items() if n == c.__name__]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        title = f"{folder}, --model.{SLOTS[folder]} NAME"
        lines = [f"  {n:<{widths[0]}}  {w:<{widths[1]}}  {first}" for n, w, first in rows]
        blocks.append("\n".join([title, *lines]))
    print("\n\n".join(blocks))
    return 0


def _first(cls: type) -> str:
    return plain((inspect.getdoc(cls) or "").partition("\n")[0])


# --- one of them --------------------------------------------------------------------------------


def _shown(folder: str, name: str, cls: type) -> str:
    """Its docstring but for the arguments, and these with their defaults."""
    about = (inspect.getdoc(cls) or "").partition("\nArgs:\n")[0].strip()
    title = f"--model.{SLOTS[folder]} {name}"
    if name != cls.__name__:
        title += f", another name of {cls.__name__}"
    where = _where(folder, cls)
    lines = [title, "", textwrap.indent(plain(about), "  ")]
    lines += ["", f"  {_WHERE[folder]}: {where}"] if where else []
    words = explained(cls)
    options, given = [], []
    for option in inspect.signature(cls).parameters.values():
        if option.kind in (option.VAR_POSITIONAL, option.VAR_KEYWORD):
            continue
        if option.name in (*NO_FLAGS, "latent_dim"):
            given.append(option.name)
            continue
        kind, default = kind_of(cls, option.name), option.default
        what = "NAME" if option.name in FOLDERS else "?" if kind is None else _expected(kind)
        said = "needed" if default is option.empty else f"default {_written(default)}"
        line = f"--model.{SLOTS[folder]}.{option.name}  {what} ({said})"
        text = " ".join(words.get(option.name, "").replace("%%", "%").split())
        options += [f"  {line}", *textwrap.wrap(text, 96, initial_indent=" " * 6,
                                                subsequent_indent=" " * 6)]  # fmt: skip
    lines += ["", *options] if options else []
    lines += ["", f"  from the model and the data: {', '.join(given)}"] if given else []
    return "\n".join(lines)


def _expected(kind: Any) -> str:
    return Flag("", kind).expected()


def _written(default: Any) -> str:
    """As it would stand behind the flag."""
    if isinstance(default, (list, tuple)):
        return ",".join(map(str, default))
    return json.dumps(default) if default is None or isinstance(default, bool) else str(default)


# --- where it lives -----------------------------------------------------------------------------

_WHERE = {"priors": "z is in", "posteriors": "z is in", "likelihoods": "x is in", "networks": ""}


def _where(folder: str, cls: Any) -> str:
    """The support of z, or of x, in words."""
    import torch

    if folder == "networks":
        return ""
    try:
        if folder == "likelihoods":
            with torch.random.fork_rng(devices=[]):
                law = cls.example(latent_dim=2, data_dim=3, hidden_dim=2)(torch.zeros(1, 2))
            return "as its groups say" if isinstance(law, dict) else _words(law.support)
        return _words(cls.example(latent_dim=2).support if folder == "priors" else cls.support)
    except (TypeError, ValueError, NotImplementedError):  # one that needs more, or has none
        return "?"


def _words(support: Any) -> str:
    """A constraint of torch in words; those of ours have their own."""
    from torch.distributions import constraints

    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    said = {
        type(constraints.real): "reals",
        type(constraints.simplex): "shares of a whole",
        type(constraints.boolean): "0 or 1",
    }
    if type(support) in said:
        return said[type(support)]
    low, high = (getattr(support, f"{side}_bound", None) for side in ("lower", "upper"))
    if low is not None:
        low = f"{low:g}"
        if getattr(support, "is_discrete", False):
            return f"whole numbers from {low}" + ("" if high is None else f" to {high:g}")
        return f"above {low}" if high is None else f"{low} to {high:g}"
    return str(support).partition(",")[0]
