"""The whole signature of a class whose constructor hands arguments on to that of its base.

``def __init__(self, *sizes, df=5.0, **networks)`` says in one line that a class takes ``df``
besides what its base takes.  Read through here, it has every argument by name: records, flags,
loading by name and ``help`` see no difference to a constructor that is written out.
"""

from __future__ import annotations

import contextlib
import inspect
import types
import typing
from typing import Any


def signature_of(cls: type) -> inspect.Signature:
    """The arguments of a class's constructor, with those that it hands on to its bases."""
    return inspect.Signature(_parameters(cls, list(cls.__mro__)))


def kinds_of(function: Any) -> dict[str, Any]:
    """The types that a signature names; without those that are imported for type checkers alone."""
    if isinstance(function, type):
        named = inspect.signature(function).parameters.items()
        return {n: p.annotation for n, p in named} | _written_by(function.__init__)  # type: ignore[misc]
    return _written_by(function)


def _parameters(cls: type, mro: list[type]) -> list[inspect.Parameter]:
    here = next(i for i, each in enumerate(mro) if "__init__" in vars(each))
    written = mro[here].__init__  # type: ignore[misc]
    kinds = _written_by(written)
    own = list(inspect.signature(written).parameters.values())[1:]
    own = [p.replace(annotation=kinds.get(p.name, p.annotation)) for p in own]
    above = next((m for m in mro[here + 1 :] if "__init__" in vars(m)), object)
    hands_on = any(p.kind is p_kwargs for p in own)
    if not hands_on or above.__module__.partition(".")[0] in ("torch", "builtins"):
        return own
    names = {p.name for p in own}
    rest = [
        p for p in _parameters(cls, mro[here + 1 :]) if p.name not in names and p.kind is not p_args
    ]
    if not any(p.kind is p_args for p in own):  # reached by name alone
        rest = [p if p.kind is p_kwargs else p.replace(kind=keyword) for p in rest]
    own = [p for p in own if p.kind not in (p_args, p_kwargs)]
    ordered = [p for p in own if p.kind is not keyword]
    ordered += [p for p in rest if p.kind not in (keyword, p_kwargs)]
    ordered += [p for p in (*own, *rest) if p.kind is keyword]
    return ordered + [p for p in rest if p.kind is p_kwargs]


keyword = inspect.Parameter.KEYWORD_ONLY
p_args, p_kwargs = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def _written_by(function: Any) -> dict[str, Any]:
    written = inspect.unwrap(function)
    found: dict[str, Any] = {}
    for name, kind in getattr(written, "__annotations__", {}).items():
        one = types.SimpleNamespace(__annotations__={name: kind})
        with contextlib.suppress(NameError):
            found |= typing.get_type_hints(one, globalns=written.__globals__)
    return found
