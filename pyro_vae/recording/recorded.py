"""Classes whose instances know the arguments of their constructor."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from pyro_vae.recording.forms import KIND, form_of, qualified, same

# {"!": "made", "class": qualified name, "arguments": {name: Form}, "defaults": [names]}
Record = dict[str, Any]


class _Signature:
    """``inspect.signature`` of a class is that of its ``__init__``, whatever ``__new__`` takes."""

    def __get__(self, instance: Any, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        signature = inspect.signature(owner.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class Recorded:
    """A class whose instances know what they were made from: see :func:`record_of`."""

    if not TYPE_CHECKING:  # type checkers look at __init__
        __signature__ = _Signature()

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            made = super().__new__(cls)
            # Past nn.Module.__setattr__, which works only after its __init__.
            vars(made)["_record"] = _record(cls, args, kwargs)
            return made


def record_of(value: Any) -> Record:
    """The record of an object, ``{"!": "made", "class": ..., "arguments": {...}}``.

    Its ``"defaults"`` are the names of the arguments that have their default values.

    Raises:
        TypeError: where there is none, because a ``__new__`` of its own left it out.
    """
    record = getattr(value, "__dict__", {}).get("_record")
    if record is None:
        raise TypeError(
            f"{type(value).__name__} holds no record of its arguments: subclass it from one of "
            "the base classes of pyro_vae, and let a __new__ of its own call super().__new__"
        )
    return record


def _record(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Record | None:
    """None where the arguments do not fit: then the constructor raises, or unpickling fills it."""
    try:
        bound = inspect.signature(cls).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
    return recorded_as(cls, bound)


def recorded_as(cls: type, bound: inspect.BoundArguments, *, whole: bool = True) -> Record:
    """The record of an instance with these arguments; not ``whole``, others may still come."""
    signature = bound.signature
    if whole:
        bound.apply_defaults()
    arguments: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= value
        elif kind is not inspect.Parameter.VAR_POSITIONAL or value:
            arguments[name] = value
    forms = {name: form_of(value) for name, value in arguments.items()}
    usual = {n: p.default for n, p in signature.parameters.items() if p.default is not p.empty}
    return {
        KIND: "made",
        "class": qualified(cls),
        "arguments": forms,
        "defaults": [n for n, d in usual.items() if n in forms and same(forms[n], form_of(d))],
    }
