"""What networks of the parts have in common, and how one comes to its sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.recording.recipes import Sizable

Shape = int | tuple[int, ...]  # of one row: the length of a vector, or (height, width), ...


class Network(Sizable):
    """A network that may be made without its sizes: ``MLP(hidden=(300, 300))``.

    A subclass takes ``inputs`` and ``outputs``, each the length of a vector or the shape of one
    row, and maps (..., *inputs) to (..., *outputs) for any leading dimensions.
    """

    sizes = ("inputs", "outputs")


def shape_of(name: str, size: Any) -> Shape:
    """A length, or the shape of a row, checked.

    Raises:
        ValueError, TypeError: no positive whole numbers.
    """
    if isinstance(size, Sequence) and not isinstance(size, str) and len(size):
        return tuple(errors.whole(f"{name}[{i}]", each) for i, each in enumerate(size))
    return errors.whole(name, size)


def length_of(size: Shape) -> int:
    """How many numbers a row has."""
    return size if isinstance(size, int) else math.prod(size)


def flattened(x: Tensor, inputs: Shape) -> Tensor:
    """Rows as vectors, (..., *inputs) to (..., length).

    Raises:
        ValueError: rows of another shape, and what to do.
    """
    expected = (inputs,) if isinstance(inputs, int) else inputs
    lead = x.dim() - len(expected)
    if lead >= 0 and tuple(x.shape[lead:]) == expected:
        return x if isinstance(inputs, int) else x.reshape(*x.shape[:lead], length_of(inputs))
    got, want = math.prod(x.shape[1:]), length_of(inputs)
    if got != want:
        advice = f"build the model for {got}"
    elif isinstance(inputs, int):
        advice = "flatten the events, x.reshape(len(x), -1)"
    else:
        advice = f"give rows that shape, x.reshape(len(x), {', '.join(map(str, inputs))})"
    expects = f"{inputs} numbers" if isinstance(inputs, int) else f"the shape {inputs}"
    raise ValueError(f"the input has shape {tuple(x.shape)}, expected {expects} a row: {advice}")


def network_of(
    network: Any, inputs: Shape, outputs: Shape, otherwise: Callable[[Shape, Shape], nn.Module]
) -> nn.Module:
    """The network of a part, mapping (..., *inputs) to (..., *outputs).

    Args:
        network: a network of ours without sizes, ``networks.MLP(hidden=(300, 300))``; a module of
            these sizes; a function or a class, called with ``inputs`` and ``outputs``, which
            returns one; or None.
        inputs, outputs: lengths, or shapes of one row.
        otherwise: what makes it where ``network`` is None.

    Raises:
        TypeError: something else.
    """
    if network is None:
        return otherwise(inputs, outputs)
    if isinstance(network, Network) and network.unsized:
        network = network.sized(inputs=inputs, outputs=outputs)
    if isinstance(network, nn.Module):
        return network
    made = network(inputs, outputs) if callable(network) else None
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"network is {network!r}, expected a module, a network without sizes such as "
            "networks.MLP(hidden=300), or a function of (inputs, outputs) that returns a module"
        )
    return made
