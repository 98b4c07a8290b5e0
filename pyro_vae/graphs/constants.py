r"""Python that reads a number or a shape off a tensor while a graph is recorded.

``.item()``, ``int()``, ``float()`` and ``bool()`` of a *constant*, a tensor that depends on no
argument of the function and on no noise, give the same number in every run, so the graph may hold
what Python made of it; so may it hold the places that a constant mask names.  Of anything else
they are refused: the graph would hold the numbers of one batch for all batches.

``one_hot`` looks at all its indices first, only to check them; in a graph it is a ``scatter``,
which checks them as it goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pyro_vae.torch_internals import StorageWeakRef, TorchDispatchMode, no_modes

aten = torch.ops.aten

# Of their arguments these take shape, dtype and device, and no value.
NAMES = ("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided")
LIKES = ("zeros_like", "ones_like", "empty_like", "full_like")
FORMS = [getattr(aten, name) for name in (*NAMES, *LIKES)]
BY_PLACES = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


class ConstantsMode(TorchDispatchMode):
    """Tells constants from what varies with the arguments and with noise.

    A storage varies once anything that varies was written to it, so views are told too.

    Args:
        varying: the arguments and the noise.
    """

    def __init__(self, varying: Iterable[Tensor]) -> None:
        super().__init__()
        # Weak references: they keep no memory, and no address is given to another storage.
        self._varying = {StorageWeakRef(t.untyped_storage()) for t in varying}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        varies = torch.Tag.nondeterministic_seeded in func.tags or self._any_varies((args, kwargs))
        if torch.Tag.data_dependent_output in func.tags:  # a number, not a tensor
            if varies:
                raise RuntimeError(
                    "data-dependent: .item(), int(), float() or bool() of a tensor that depends "
                    "on the rows, the parameters or noise"
                )
            with no_modes():
                return func(*args, **kwargs)
        by_mask = func in BY_PLACES and _has_mask(args[1]) and not _fills(func, args)
        if by_mask and not self._any_varies(args[1]):
            args = (args[0], _places(args[1]), *args[2:])
        if _shape_depends_on_values(func, args):  # and no probe may show it
            raise RuntimeError(f"a shape depends on the values of tensors, by {func}")
        result = func(*args, **kwargs)
        if varies and func.overloadpacket not in FORMS:
            for tensor in pytree.tree_leaves((result, _written(func, args, kwargs))):
                if isinstance(tensor, Tensor):
                    self._varying.add(StorageWeakRef(tensor.untyped_storage()))
        return result

    def _any_varies(self, nest: Any) -> bool:
        return any(
            StorageWeakRef(leaf.untyped_storage()) in self._varying
            for leaf in pytree.tree_leaves(nest)
            if isinstance(leaf, Tensor)
        )


def _written(func: Any, args: tuple, kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation writes into."""
    if not func._schema.is_mutable:
        return []
    return [
        args[place] if place < len(args) else kwargs.get(argument.name)
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _has_mask(indices: Iterable[Tensor | None]) -> bool:
    return any(map(_is_mask, indices))


def _fills(func: Any, args: tuple) -> bool:
    """Whether one value is put at each place, for which no place need be known."""
    return func is not aten.index.Tensor and args[2].numel() == 1


def _places(indices: Iterable[Tensor | None]) -> list[Tensor | None]:
    """The same indices, masks as the places that they name: constants of the graph."""
    with no_modes():
        return [
            place
            for index in indices
            for place in (index.nonzero().unbind(-1) if _is_mask(index) else (index,))  # type: ignore[union-attr]
        ]


def _shape_depends_on_values(func: Any, args: tuple) -> bool:
    """Whether an operation's result has as many entries as data say: no graph fits all of them."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    # By whole numbers the shape is theirs; by a mask it is not.
    return func is not aten.index.Tensor or _has_mask(args[1])


class OneHotMode(TorchFunctionMode):
    """``torch.nn.functional.one_hot`` without a look at the values."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.nn.functional.one_hot:
            index, classes = _one_hot_arguments(*args, **kwargs)
            if classes > 0:
                zeros = index.new_zeros((*index.shape, classes))
                return zeros.scatter(-1, index.unsqueeze(-1), 1)
        return func(*args, **kwargs)


def _one_hot_arguments(
    tensor: Tensor | None = None, num_classes: int = -1, *, input: Tensor | None = None
) -> tuple[Any, int]:
    return (tensor if input is None else input), num_classes
