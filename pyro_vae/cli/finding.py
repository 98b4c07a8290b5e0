"""Models and parts by name, or by ``path/to/file.py:name``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyro_vae.cli.building import FOLDERS, Model, Named, Part
from pyro_vae.cli.flags import nearest
from pyro_vae.cli.userfiles import imported, path_and_name, python_file

MODELS = Path(__file__).parents[1] / "models"


def find_model(spec: str, also: str = "") -> Model:
    """By name, or by ``path/to/file.py:build``; the file is run.

    Args:
        spec: what the command line says.
        also: what else ``spec`` might have been meant to name.

    Raises:
        ValueError: no such model or file, or one that cannot be imported or has no ``build``.
    """
    path, name = path_and_name(spec, "build")
    if path is None:
        known = sorted(module.name for module in pkgutil.iter_modules([str(MODELS)]))
        if spec not in known:
            raise ValueError(
                f"model: {nearest(spec, known)}; a file of your own is path/to/file.py:build{also}"
            )
        return Model("model", spec, importlib.import_module(f"pyro_vae.models.{spec}").build)
    path = python_file(path)
    # Of a file of ours a second copy would be another class.
    own = path.resolve().parent == MODELS.resolve()
    module = importlib.import_module(f"pyro_vae.models.{path.stem}") if own else imported(path)
    build = vars(module).get(name)  # and not what a __getattr__ of the file makes up
    if not callable(build):
        there = [n for n, v in vars(module).items() if inspect.isfunction(v)]
        if build is None and there:
            raise ValueError(f"{path}: {nearest(name, there)}")
        raise ValueError(
            f"{path}: has no function {name}; define def {name}(data_dim, *, latent_dim=2): ..."
        )
    if own and name == "build":
        return Model("model", path.stem, build)
    return Model("model", str(path), build, path.resolve())


def with_parts(model: Model, last: Callable[[str], str | None], modules: dict[Path, Any]) -> Model:
    """With the parts that are named for its slots, and these with theirs.

    Args:
        model: what they are of.
        last: what a flag was given last, such as ``model.prior``.
        modules: the user's files that were run, to which those of parts are added.

    Raises:
        ValueError: no such class or file, or one that cannot be imported.
    """

    def filled(named: Any) -> Any:
        parts = {}
        for slot in named.slots:
            flag = f"{named.flag}.{slot}"
            if (spec := last(flag)) is not None:
                parts[slot] = filled(_part(flag, slot, spec, model, modules))
        return replace(named, parts=parts)

    return filled(model)


def _part(flag: str, slot: str, spec: str, model: Model, modules: dict[Path, Any]) -> Part:
    from torch import nn

    from pyro_vae.program import parts
    from pyro_vae.recording.listing import classes_in

    path, name = path_and_name(spec, "Class")
    if path is None:
        if spec not in (known := classes_in(FOLDERS[slot])):
            own = "a class of your own is path/to/file.py:Class"
            raise ValueError(f"--{flag}: {nearest(spec, sorted(known))}; {own}")
        return Part(flag, spec, known[spec], known=model.known())
    path = python_file(path)
    if path.resolve() not in modules:
        modules[path.resolve()] = imported(path)
    module = modules[path.resolve()]
    kinds = {
        n: v for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, nn.Module)
    }
    if name not in kinds:
        why = nearest(name, list(kinds)) if kinds else "has no class that is a torch.nn.Module"
        raise ValueError(f"--{flag} {path}: {why}; name one, {path}:Class")
    base = getattr(parts, slot.title(), ())  # a network is any module but a part
    if issubclass(kinds[name], parts.Part) and not issubclass(kinds[name], base):
        is_a = kinds[name].__mro__[1].__name__
        raise ValueError(f"--{flag} {spec}: is a {is_a}, expected a {slot}: name one")
    return Part(flag, spec, kinds[name], path.resolve(), known=model.known())


def require_named(model: Named, names: list[str]) -> None:
    """Raises ValueError for an option of a part that no flag names."""
    for named in (model, *model.inner()):
        for slot in named.slots:
            flag = f"{named.flag}.{slot}"
            mine = [n for n in names if n.startswith(f"{flag}.") and n != f"{flag}.name"]
            if mine and slot not in named.parts:
                a = "an" if slot[0] in "aeiou" else "a"
                raise ValueError(f"--{mine[0]} is an option of {a} {slot}: name it, --{flag} NAME")
