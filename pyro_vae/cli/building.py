"""A model by name or file, with the parts named for it, built under a seed.

``--model.prior StandardNormal --model.prior.precision 2`` names a class of ``pyro_vae.priors`` and
options of its constructor; ``--model.prior path/to/file.py:Mine`` one of a file of your own.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyro_vae.cli.flags import Flag, explained, flags_of, kind_of, nearest
from pyro_vae.cli.userfiles import imported, located, path_and_name, shortage

MODELS = Path(__file__).parents[1] / "models"
FOLDERS = {"prior": "priors", "likelihood": "likelihoods", "posterior": "posteriors"}
SIZES = ("data_dim", "latent_dim")  # in which model and parts must agree
SHARED = (*SIZES, "hidden_dim", "init_std")  # a part has the model's, where it is given no other


@dataclass(frozen=True)
class Part:
    """A class that stands for an argument of ``build``; ``path`` is None for one of ours."""

    slot: str
    name: str
    kind: type
    path: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A ``build`` and where it stands; ``path`` is None for a file of ``pyro_vae.models``."""

    name: str
    build: Callable[..., Any]
    path: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()

    @property
    def files(self) -> list[Path]:
        """The user's files whose code it runs."""
        paths = [self.path, *(part.path for part in self.parts)]
        return [path for path in paths if path is not None]

    @property
    def slots(self) -> list[str]:
        """The arguments for which a part may be named: those that no plain value fits."""
        arguments = inspect.signature(self.build).parameters
        return [s for s in FOLDERS if s in arguments and kind_of(self.build, s) in (None, Any)]

    def flags(self) -> list[Flag]:
        """``--model.latent_dim`` and its like, ``--model.prior``, and the options of parts.

        Raises:
            ValueError: something has an option called ``name``.
        """
        functions: list[Any] = [self.build, *(part.kind for part in self.parts)]
        for function in functions:
            if "name" in inspect.signature(function).parameters:
                raise ValueError(
                    f'{self.name}: {function.__name__} has an option called "name", which the '
                    "command line keeps for what it is: give it another name"
                )
        flags = flags_of(self.build, "model.", skip=[*self.slots, self._takes_dim])
        from pyro_vae.recording.listing import classes_in

        about = explained(self.build)
        for slot in self.slots:
            known = f"here: {', '.join(classes_in(FOLDERS[slot]))}, or path/to/file.py:Class"
            words = f"{about.get(slot, '')} ({known}; --model.{slot}.OPTION are its options)"
            flags.append(Flag(f"model.{slot}.name", str, help=words.strip()))
        for part in self.parts:
            for flag in flags_of(part.kind, f"model.{part.slot}."):
                if self._shares(flag.name.rpartition(".")[2]):
                    words = f"{flag.help} (the model's, where it is not given)".strip()
                    flag = dataclasses.replace(flag, required=False, default=None, help=words)
                flags.append(flag)
        return flags

    def with_parts(self, named: Mapping[str, str | None]) -> Model:
        """With the parts of these names, by slot."""
        parts = [find_part(s, name, self) for s, name in named.items() if name is not None]
        return dataclasses.replace(self, parts=tuple(parts))

    def with_options(self, given: Mapping[str, Any]) -> Model:
        """With what was given: ``latent_dim`` is its own, ``prior.precision`` a part's.

        Raises:
            ValueError: one is for a part that another part replaces.
        """
        parts = []
        for part in self.parts:
            for name in given:
                if name.startswith(f"{part.slot}_"):
                    raise ValueError(
                        f"--model.{name} is for the {part.slot} that --model.{part.slot} "
                        f"{part.name} replaces: leave it out, or give --model.{part.slot}.OPTION"
                    )
            own = {n.removeprefix(f"{part.slot}."): v for n, v in given.items()
                   if n.startswith(f"{part.slot}.") and n != f"{part.slot}.name"}  # fmt: skip
            parts.append(dataclasses.replace(part, options=own))
        plain = {name: value for name, value in given.items() if "." not in name}
        return dataclasses.replace(self, options=plain, parts=tuple(parts))

    def make(self, data_dim: int, seed: int) -> Any:
        """The program, its initial parameters drawn under ``seed``.

        Raises:
            ValueError: ``build`` or a part raised, sizes differ, or no program came out.
        """
        from torch import nn

        from pyro_vae.noise import Stream, seeded

        filled = self._takes_dim
        positional, named = [], dict(self.options)
        if filled is not None:
            kind = inspect.signature(self.build).parameters[filled].kind
            if kind is inspect.Parameter.POSITIONAL_ONLY:
                positional.append(data_dim)
            else:
                named[filled] = data_dim
        with seeded(*Stream.PARAMETERS.key(seed)):
            for part in self.parts:
                options = self._options_of(part, data_dim)
                shown = f"--model.{part.slot} {part.name}"
                named[part.slot] = _called(part.kind, part.path, shown, "", **options)
            advice = f", in build; make build({data_dim}) run"
            program = _called(self.build, self.path, self.name, advice, *positional, **named)
        if not isinstance(program, nn.Module):
            raise ValueError(
                f"{self.name}: build returned {type(program).__name__}, expected a program with "
                "model(x) and guide(x), such as a pv.Program"
            )
        return program

    @property
    def _takes_dim(self) -> str | None:
        """The parameter that the data fill in: ``data_dim``, or else a first one without name."""
        options = inspect.signature(self.build).parameters
        if "data_dim" in options:
            return "data_dim"
        for name, option in options.items():
            if option.kind in (option.POSITIONAL_ONLY, option.POSITIONAL_OR_KEYWORD):
                return name if option.default is option.empty else None
        return None

    def _shares(self, name: str) -> bool:
        """Whether a part takes this option from the model."""
        has = name in inspect.signature(self.build).parameters
        return name == "data_dim" or (name in SHARED and has)

    def _options_of(self, part: Part, data_dim: int) -> dict[str, Any]:
        """Those given to a part, and the model's in place of others."""
        options = dict(part.options)
        for name in filter(self._shares, inspect.signature(part.kind).parameters):
            if name == "data_dim":
                own = data_dim
            else:
                default = inspect.signature(self.build).parameters[name].default
                own = self.options.get(name, default)
            if options.setdefault(name, own) != own and name in SIZES:
                whose = "the data's" if name == "data_dim" else f"--model.{name}"
                raise ValueError(
                    f"--model.{part.slot}.{name} is {options[name]}, expected {own}, {whose}"
                )
        return options


def _called(
    function: Callable[..., Any], path: Path | None, shown: str, advice: str, *args: Any, **kw: Any
) -> Any:
    """What the function returns; where it fails, the line of the user's file is told."""
    try:
        return function(*args, **kw)
    except (Exception, SystemExit) as error:
        ours = (ValueError, TypeError, RuntimeError, OverflowError)  # impossible options
        if place := located(error, path):
            raise ValueError(f"{place}{advice}") from error
        if (path is None or not advice) and isinstance(error, ours):
            raise ValueError(f"{shown}: {shortage(error) or _first_line(error)}") from error
        raise


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]  # torch adds its stack


# --- by name or from a file ---------------------------------------------------------------------


def find_model(spec: str, also: str = "") -> Model:
    """By name, or by ``path/to/file.py:build``; the file is run.

    Args:
        spec: what the command line says.
        also: what else it might have been meant to name.

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
        return Model(spec, importlib.import_module(f"pyro_vae.models.{spec}").build)
    # Of a file of ours a second copy would be another class.
    own = path.resolve().parent == MODELS.resolve() and path.is_file()
    module = importlib.import_module(f"pyro_vae.models.{path.stem}") if own else imported(path)
    build = getattr(module, name, None)
    if not callable(build):
        there = [n for n, v in vars(module).items() if inspect.isfunction(v)]
        if build is None and there:
            raise ValueError(f"{path}: {nearest(name, there)}")
        raise ValueError(
            f"{path}: has no function {name}; define def {name}(data_dim, *, latent_dim=2): ..."
        )
    if own and name == "build":
        return Model(path.stem, build)
    return Model(str(path), build, path.resolve())


def find_part(slot: str, spec: str, model: Model) -> Part:
    """By name, or by ``path/to/file.py:Class``; the file is run, unless the model's own did.

    Raises:
        ValueError: no such class or file, or one that cannot be imported.
    """
    from torch import nn

    from pyro_vae.program import parts
    from pyro_vae.recording.listing import classes_in

    path, name = path_and_name(spec, "Class")
    if path is None:
        if spec not in (known := classes_in(FOLDERS[slot])):
            own = "a class of your own is path/to/file.py:Class"
            raise ValueError(f"--model.{slot}: {nearest(spec, sorted(known))}; {own}")
        return Part(slot, spec, known[spec])
    same = model.path is not None and path.resolve() == model.path
    module = sys.modules[model.build.__module__] if same else imported(path)
    kinds = {
        n: v for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, nn.Module)
    }
    if name not in kinds:
        why = nearest(name, list(kinds)) if kinds else "has no class that is a torch.nn.Module"
        raise ValueError(f"--model.{slot} {path}: {why}; name one, {path}:Class")
    base = getattr(parts, slot.title())
    if issubclass(kinds[name], parts.Part) and not issubclass(kinds[name], base):
        is_a = kinds[name].__mro__[1].__name__
        raise ValueError(f"--model.{slot} {spec}: is a {is_a}, expected a {slot}: name one")
    return Part(slot, spec, kinds[name], path.resolve())
