"""Multi-layer perceptrons: the paper's one hidden layer, and deeper ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.networks.base import Network, Shape, flattened, length_of, shape_of
from pyro_vae.recording.recipes import LATER

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
}
Activation = Literal["tanh", "relu", "softplus", "silu", "gelu", "elu", "leaky_relu", "sigmoid"]


class Gated(nn.Module):
    r"""A gated linear layer, :math:`(V x + c) \cdot \mathrm{sigmoid}(W x + b)`.

    Both products are one, of (in, 2 out).  Source: van den Oord et al. (2016), arXiv:1606.05328;
    Tomczak & Welling (2018), arXiv:1705.07120, section 4.2.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.linear(x).chunk(2, dim=-1)
        return value * gate.sigmoid()


class Residual(nn.Module):
    """x + f(x), where a layer keeps the width."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


class MLP(Network, nn.Sequential):
    """Hidden layers between two linear maps: x (..., *inputs) -> (..., *outputs).

    Args:
        inputs, outputs: lengths of vectors, or shapes of one row, which is flattened, or given its
            shape, here.  Without them it is a recipe, ``MLP(hidden=(300, 300))``.
        hidden: the width of the hidden layer, or of each of several; () is a linear map.
        activation: after each hidden layer; none follows a gated one.
        gated: hidden layers are :class:`Gated`.
        norm: layer normalization ahead of each activation.
        residual: hidden layers that keep the width are added to their input.
        init_std: weights and biases start as N(0, init_std^2) draws; None keeps torch's own
            initialization, which learns small images faster but is not the paper's.  "auto" is
            0.01 for the paper's network, one hidden layer and nothing else, and None for others, in
            which 0.01 would keep the signal from the deeper layers.

    The paper says that parameters start from N(0, 0.01) and not whether 0.01 is the variance;
    a standard deviation of 0.01 gives its published curves, a variance of 0.01 does not.

    Raises:
        ValueError: for events of another size, or images where vectors were promised.

    Source: Kingma & Welling (2014), appendix C and section 5.
    """

    def __init__(
        self,
        inputs: int | Sequence[int] = LATER,
        hidden: int | Sequence[int] = 500,
        outputs: int | Sequence[int] | None = None,
        *,
        activation: Activation = "tanh",
        gated: bool = False,
        norm: bool = False,
        residual: bool = False,
        init_std: float | Literal["auto"] | None = "auto",
    ) -> None:
        if outputs is None:
            raise ValueError("outputs is None, expected a length or a shape: give outputs=")
        into, out = shape_of("inputs", inputs), shape_of("outputs", outputs)
        several = isinstance(hidden, Sequence) and not isinstance(hidden, str)
        width = () if several and not len(hidden) else shape_of("hidden", hidden)  # type: ignore[arg-type]
        widths = (width,) if isinstance(width, int) else width
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}, expected one of {[*ACTIVATIONS]}")
        plain = len(widths) <= 1 and not (gated or norm or residual)
        if init_std == "auto":
            init_std = 0.01 if plain else None
        elif init_std is not None:
            init_std = errors.positive("init_std", init_std, "or None for torch's own")
        layers: list[nn.Module] = []
        before = length_of(into)
        for width in widths:
            layer: list[nn.Module] = [(Gated if gated else nn.Linear)(before, width)]
            layer += [nn.LayerNorm(width)] if norm else []
            layer += [] if gated else [ACTIVATIONS[activation]()]
            keeps = residual and width == before
            layers += [Residual(nn.Sequential(*layer))] if keeps else layer
            before = width
        super().__init__(*layers, nn.Linear(before, length_of(out)))
        self.inputs: Shape = into
        self.outputs: Shape = out
        if init_std is not None:
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.normal_(0.0, init_std)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(flattened(x, self.inputs))
        return y if isinstance(self.outputs, int) else y.reshape(*y.shape[:-1], *self.outputs)


def positive(log_variance: Tensor, floor: float) -> Tensor:
    """A standard deviation from its log variance, bounded below: sqrt(exp(s) + floor^2).

    The paper's exp(s / 2) wherever it is well above the floor; without one, a Gaussian density
    can be made as large as one likes on a pixel that never changes.
    """
    return (log_variance.exp() + floor**2).sqrt()
