"""The paper's networks: one hidden layer, small random weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.recording import Recorded


class MLP(Recorded, nn.Sequential):
    """One hidden layer with tanh: x (B, in) -> (B, out).

    Args:
        inputs, hidden, outputs: the sizes.
        init_std: weights and biases start as N(0, init_std^2) draws; None keeps torch's own
            initialization, which learns small images faster but is not the paper's.

    The paper says that parameters start from N(0, 0.01) and not whether 0.01 is the variance;
    a standard deviation of 0.01 gives its published curves, a variance of 0.01 does not.

    Raises:
        ValueError: for events of another size, or images that are not flattened.

    Source: Kingma & Welling (2014), appendix C and section 5.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, *, init_std: float | None = 0.01
    ) -> None:
        inputs, hidden = errors.whole("inputs", inputs), errors.whole("hidden", hidden)
        outputs = errors.whole("outputs", outputs)
        if init_std is not None:
            init_std = errors.positive("init_std", init_std, "or None for torch's own")
        super().__init__(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))
        if init_std is not None:
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.normal_(0.0, init_std)

    def forward(self, x: Tensor) -> Tensor:
        first = self[0]
        if isinstance(first, nn.Linear) and x.shape[-1:] != (first.in_features,):
            advice = f"build the model for {math.prod(x.shape[1:])}"
            if math.prod(x.shape[1:]) == first.in_features:
                advice = "flatten the events, x.reshape(len(x), -1)"
            raise ValueError(
                f"the input has shape {tuple(x.shape)}, expected {first.in_features} numbers a "
                f"row: {advice}"
            )
        return super().forward(x)


def positive(log_variance: Tensor, floor: float) -> Tensor:
    """A standard deviation from its log variance, bounded below: sqrt(exp(s) + floor^2).

    The paper's exp(s / 2) wherever it is well above the floor; without one, a Gaussian density
    can be made as large as one likes on a pixel that never changes.
    """
    return (log_variance.exp() + floor**2).sqrt()
