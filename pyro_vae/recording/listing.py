"""Classes by name: what stands in a folder is found by looking there, so there is no table to keep.

A class in a new file of ``priors/``, ``likelihoods/``, ``posteriors/``, ``networks/`` or
``objectives/`` is exported, built by name from a saved run, and given flags at the command line,
without an entry elsewhere::

    >>> "Gaussian" in classes_in("posteriors")
    True
    >>> find_class("priors", "Normal")(2)
    Normal(latent_dim=2)

Listed are the public classes that are :class:`~pyro_vae.recording.Recorded`, of every file of the
folder but ``base.py``, in which what the others share is.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import types
import typing
from collections import abc
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pyro_vae.recording import KIND, PLAIN, Form, Recorded, qualified, shown
from pyro_vae.recording.recipes import Sizable
from pyro_vae.recording.signatures import kinds_of

PARTS = ("priors", "likelihoods", "posteriors", "networks")


def classes_in(folder: str) -> dict[str, type]:
    """The classes that the files of ``pyro_vae.<folder>`` define, by name.

    Raises:
        ValueError: two files define a class of one name.
    """
    package = importlib.import_module(f"pyro_vae.{folder}")
    found: dict[str, type] = {}
    for file in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        if file == "base":
            continue
        module = importlib.import_module(f"{package.__name__}.{file}")
        for name, value in vars(module).items():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and issubclass(value, Recorded) and not name.startswith("_"):
                if name in found:
                    files = f"{qualified(found[name])} and {qualified(value)}"
                    raise ValueError(f"{folder} has two classes {name}, {files}: rename one")
                found[name] = value
    return found


def find_class(folder: str, name: str) -> type:
    """The class of ``pyro_vae.<folder>`` that has this name.

    Raises:
        ValueError: there is none; it says which there are.
    """
    known = classes_in(folder)
    if name not in known:
        lower = {each.lower(): each for each in known}
        close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.3)
        hint = f', did you mean "{lower[close[0]]}"?' if close else ","
        raise ValueError(f'{folder}: unknown "{name}"{hint} known: {", ".join(sorted(known))}')
    return known[name]


# --- the face of a folder -----------------------------------------------------------------------


def exported(package: str, name: str, also: Sequence[str] = ()) -> Any:
    """What a folder's ``__getattr__`` answers: one of its classes, or ``__all__``."""
    if name == "__all__":
        return names_in(package, also)
    known = {} if name.startswith("_") else classes_in(package.rpartition(".")[2])
    if name not in known:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return known[name]


def names_in(package: str, also: Sequence[str] = ()) -> list[str]:
    """The names that a folder exports: its classes, and what it imports besides."""
    return sorted({*classes_in(package.rpartition(".")[2]), *also})


# --- building by name ---------------------------------------------------------------------------


def rebuilt(form: Form, name: str) -> Any:
    """The value that a form describes: a plain one, or a part of ours, made anew by its class.

    Args:
        form: of a record, from a file that anyone may have written.
        name: of the argument, for what is said.

    Raises:
        ValueError: it is none of these, by name; no class is looked for outside the folders of
            parts, nothing is imported that a form names, and every argument has its own type.
    """
    if isinstance(form, (list, tuple)):
        return type(form)(rebuilt(each, f"{name}[{i}]") for i, each in enumerate(form))
    if type(form) in PLAIN:
        return form
    if isinstance(form, dict) and KIND not in form:
        return {each: rebuilt(value, f"{name}.{each}") for each, value in form.items()}
    cls = _class_of(form)
    if cls is None:
        raise ValueError(f"{name} is {_said(form)}, which cannot be made from its name")
    return called(cls, rebuilt_all(form.get("arguments"), f"{name}."), name)


def rebuilt_all(forms: Any, prefix: str = "") -> dict[str, Any]:
    """Each value of a dict of forms, as :func:`rebuilt` has it."""
    if not isinstance(forms, dict):
        raise ValueError(f"{prefix.removesuffix('.') or 'the record'} has no arguments")
    return {name: rebuilt(form, f"{prefix}{name}") for name, form in forms.items()}


def called(function: Callable[..., Any], arguments: dict[str, Any], name: str) -> Any:
    """What a class or a ``build`` makes of arguments from a file that anyone may write.

    Raises:
        ValueError: an argument is missing, is not known, or has another type than the signature
            says; or the call raises.
    """
    positional, named = _as_called(function, arguments, name)
    try:
        return function(*positional, **named)
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name}: {function.__name__}: {line}") from error


def _class_of(form: Any) -> type | None:
    """By its name alone, so that a class may move from file to file."""
    text = form.get("class") if isinstance(form, dict) and form.get(KIND) == "made" else None
    package, _, rest = text.partition(".") if isinstance(text, str) else ("", "", "")
    folder, _, place = rest.partition(".")
    if package != "pyro_vae" or folder not in PARTS:
        return None
    return find_class(folder, place.rpartition(".")[2])


def _said(form: Any) -> str:
    try:
        return shown(form, full=True)
    except (AttributeError, TypeError, KeyError):
        return "no whole record"


def _as_called(
    function: Callable[..., Any], arguments: dict[str, Any], name: str
) -> tuple[list[Any], dict[str, Any]]:
    """Positional and named arguments, each of a name and a type that the constructor knows."""
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    kinds = kinds_of(function)
    for each, value in arguments.items():
        if each not in parameters and not takes_any:
            raise ValueError(f"{name}: {function.__name__} has no argument {each!r}")
        if not _fits(value, kinds.get(each, Any)):
            expected = inspect.formatannotation(kinds[each])
            raise ValueError(f"{name}.{each} is {value!r}, expected {expected}")
    for each, parameter in parameters.items():
        optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD,
        )  # fmt: skip
        of_recipe = isinstance(function, type) and issubclass(function, Sizable)
        later = of_recipe and each in getattr(function, "sizes", ())
        if each not in arguments and not optional and not later:
            raise ValueError(f"{name}: {function.__name__} needs an argument {each!r}")
    positional: list[Any] = []
    named = dict(arguments)
    several = any(p.kind is p.VAR_POSITIONAL and each in named for each, p in parameters.items())
    for each, parameter in parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += named.pop(each, ())
        elif (each in named and parameter.kind is parameter.POSITIONAL_ONLY) or (
            each in named and several and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ):
            positional.append(named.pop(each))
    return positional, named


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if kind is Any:
        return True
    if kind is None or kind is type(None):
        return value is None
    if kind is float:
        return type(value) in (int, float)
    if kind is int:
        return type(value) is int or (type(value) is float and value.is_integer())
    cls = origin or kind
    if cls in (list, tuple) or (isinstance(cls, type) and issubclass(cls, abc.Collection)):
        return isinstance(value, (list, tuple, dict)) and isinstance(value, cls)
    return isinstance(value, cls) if isinstance(cls, type) else True
