r"""Objects that may be made before their sizes are known.

A class that is :class:`Sizable` says which arguments of its constructor are *sizes*.  Called
without those that it needs, it gives a recipe of itself: an instance that knows its options, whose
constructor has not run, and which :meth:`Sizable.sized` makes when the sizes are known::

    >>> class Wide(Sizable):
    ...     sizes = ("latent_dim",)
    ...     def __init__(self, latent_dim, scale=1.0):
    ...         self.shape, self.scale = (latent_dim,), scale
    >>> recipe = Wide(scale=3.0)
    >>> recipe, recipe.unsized
    (Wide(scale=3.0), True)
    >>> recipe.sized(latent_dim=2, data_dim=784)  # takes what its constructor has a name for
    Wide(latent_dim=2, scale=3.0)
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import nn

from pyro_vae.recording.comparing import shown
from pyro_vae.recording.recorded import Recorded, recorded_as
from pyro_vae.recording.signatures import signature_of


class _Later:
    def __repr__(self) -> str:
        return "LATER"

    def __deepcopy__(self, memo: Any) -> _Later:
        return self


LATER: Any = _Later()  # as a default: a size, which may be given later, also to type checkers


class _Made(type):
    """Makes a recipe where nothing but sizes is missing."""

    if not TYPE_CHECKING:  # type checkers look at __init__

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            signature = inspect.signature(cls)
            try:
                bound = signature.bind_partial(*args, **kwargs)
            except TypeError:
                return super().__call__(*args, **kwargs)  # which says what does not fit
            needed = [
                name for name, parameter in signature.parameters.items()
                if parameter.default in (parameter.empty, LATER)
                and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
                and name not in bound.arguments
            ]  # fmt: skip
            if not needed or any(name not in cls.sizes for name in needed):
                return super().__call__(*args, **kwargs)
            recipe = cls.__new__(cls)
            if isinstance(recipe, nn.Module):
                nn.Module.__init__(recipe)
            vars(recipe)["_recipe"] = _by_name(bound)
            vars(recipe)["_record"] = recorded_as(cls, bound, whole=False)
            return recipe


def _by_name(bound: inspect.BoundArguments) -> dict[str, Any]:
    """The arguments, with those that ``**options`` took beside the others."""
    found = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= found.pop(name, {})
    return found


def _called(cls: Any, arguments: dict[str, Any]) -> Any:
    """The class called with arguments by name, but for those that have none to a caller."""
    rest, args = dict(arguments), []
    parameters = list(inspect.signature(cls).parameters.values())
    many = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    for p in parameters:
        if p.kind is p.POSITIONAL_ONLY or (p.kind is p.POSITIONAL_OR_KEYWORD and many in rest):
            value = rest.pop(p.name, p.default)
            if value is p.empty or value is LATER:
                break
            args.append(value)
    return cls(*args, *rest.pop(many, ()), **rest)


class _Signature:
    def __get__(self, instance: Any, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        return signature_of(owner)


class Sizable(Recorded, metaclass=_Made):
    """A recorded class whose instances may be made without their sizes."""

    sizes: ClassVar[tuple[str, ...]] = ()
    _recipe: dict[str, Any] | None = None

    if not TYPE_CHECKING:
        __signature__ = _Signature()

    @property
    def unsized(self) -> bool:
        """Whether it is a recipe: its sizes are not known, and its constructor has not run."""
        return self._recipe is not None

    def with_options(self, **options: Any) -> Self:
        """The same recipe with arguments that it was not given; those that it was given stay."""
        if self._recipe is None:
            return self
        names = inspect.signature(type(self)).parameters
        more = {n: v for n, v in options.items() if n in names and n not in self._recipe}
        return _called(type(self), self._recipe | more)

    def sized(self, **sizes: Any) -> Self:
        """The finished object of a recipe; anything else is returned as it is.

        Args:
            sizes: by name; it takes those that its constructor has, and was not given.

        Raises:
            ValueError: sizes are missing still.
        """
        made = self.with_options(**sizes)
        if made.unsized:
            raise ValueError(made.say_unsized())
        return made

    def say_unsized(self) -> str:
        """What is missing, in words."""
        parameters = inspect.signature(type(self)).parameters.values()
        given = self._recipe or {}
        needed = [
            p.name
            for p in parameters
            if p.default in (p.empty, LATER) and p.name not in given and p.kind is not p.VAR_KEYWORD
        ]
        return (
            f"{self!r} has no {' and no '.join(needed)} yet: pass it to pv.VAE.build, which knows, "
            f"or give {', '.join(f'{name}=' for name in needed)}"
        )

    def __repr__(self) -> str:
        return shown(vars(self)["_record"]) if vars(self).get("_record") else super().__repr__()
