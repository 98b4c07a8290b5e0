"""What a capture comes to: a function as one pure graph, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pyro_vae.noise import Key, Noise, keyed

# --- capture ------------------------------------------------------------------------------------


class Refusal(NamedTuple):
    """Why a program could not be captured; ``str()`` of it is one line for the user."""

    reason: str

    def __str__(self) -> str:
        return self.reason


TENSOR = object()  # stands for a tensor among results, of which None may be one


class Lifted:
    """A function as one graph of pure operations, its random draws arguments.

    ``lifted(*args, noise=lifted.draw(key))`` equals ``function(*args)`` run under
    ``NoiseMode(keyed(*key))``.  Arguments and results are the function's own nests of tensors.
    """

    def __init__(
        self, graph: fx.GraphModule, noise, positions, kept, forms, in_spec, out_spec, constants
    ):
        self.graph = graph
        self.run: Callable[..., Sequence[Tensor]] = graph  # or machine code that does the same
        self._forms = forms  # shape and dtype of each argument
        self.rough = False  # with products in bfloat16: two ways to compute it differ visibly
        self.noise: tuple[Noise, ...] = noise
        self.positions: tuple[int, ...] = positions  # of each noise among all draws asked for
        self.kept: tuple[str, ...] = kept
        self._in_spec = in_spec
        self._out_spec = out_spec
        self._constants: list[Any] = constants  # results that are no tensors, else TENSOR

    def draw(self, key: Key, noise: Callable[..., Any] = keyed) -> list[Tensor]:
        """The noise that belongs to ``key``, as ``noise`` draws it."""
        source = noise(*key)
        return [source(i, noise) for i, noise in zip(self.positions, self.noise, strict=True)]

    def flat(self, *tensors: Tensor) -> list[Tensor]:
        """Run the graph on flat lists: arguments, then noise."""
        return list(self.run(*tensors))

    def unflatten(self, tensors: Sequence[Tensor]) -> Any:
        """Bring flat results into the form that the function returns."""
        rest = iter(tensors)
        leaves = [next(rest) if c is TENSOR else c for c in self._constants]
        return pytree.tree_unflatten(leaves, self._out_spec)

    def __call__(self, *args: Any, noise: Sequence[Tensor]) -> Any:
        leaves, spec = pytree.tree_flatten(args)
        if spec != self._in_spec or [(leaf.shape, leaf.dtype) for leaf in leaves] != self._forms:
            raise ValueError(
                f"a captured function was called with arguments of the form {spec}: "
                f"{_in_words((leaf.shape, leaf.dtype) for leaf in leaves)}, expected "
                f"{self._in_spec}: {_in_words(self._forms)}: capture it again for the new form"
            )
        return self.unflatten(self.flat(*leaves, *noise))


def _in_words(forms: Iterable[tuple[torch.Size, torch.dtype]]) -> str:
    return ", ".join(f"{tuple(shape)} {dtype}" for shape, dtype in forms)
