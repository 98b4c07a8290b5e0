"""A small convolutional encoder, and its mirror image, the decoder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.networks.base import Network, Shape, length_of, shape_of
from pyro_vae.networks.mlp import ACTIVATIONS, Activation
from pyro_vae.recording.recipes import LATER


class Convolutional(Network, nn.Module):
    """Images to vectors, or vectors to images: convolutions of stride 2 and one linear map.

    Args:
        inputs, outputs: one of them is the shape of an image, (H, W) or (C, H, W), behind any
            number of maps, and the other a length: with an image as input it is an encoder, else a
            decoder.  Without them it is a recipe, which serves as both.
        channels: of the layers, from the image on; each halves height and width, rounded up.
        hidden: width of one more layer between the convolutions and the vector; 0 for none.
        activation: after each layer but the last.

    The decoder mirrors the encoder: a linear map to the smallest image, then transposed
    convolutions to exactly the height and width asked for.  Leading dimensions are any, such as
    (K, B).

    Raises:
        ValueError: no image on either side, or one too small for so many layers.

    Source: the layout is that of Radford et al. (2016), arXiv:1511.06434, without batch
    normalization, which would mix the rows of a batch.
    """

    def __init__(
        self,
        inputs: int | Sequence[int] = LATER,
        outputs: int | Sequence[int] = LATER,
        *,
        channels: Sequence[int] = (32, 64),
        hidden: int = 256,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.inputs: Shape = shape_of("inputs", inputs)
        self.outputs: Shape = shape_of("outputs", outputs)
        widths = shape_of("channels", channels)
        widths = (widths,) if isinstance(widths, int) else widths
        hidden = errors.whole("hidden", hidden, 0)
        self.encodes = _is_image(self.inputs)
        if not self.encodes and not _is_image(self.outputs):
            raise ValueError(
                f"Convolutional maps {self.inputs} to {self.outputs}, neither of which is the "
                "shape of an image: pass data of shape (N, H, W) or (N, C, H, W)"
            )
        image: Any = self.inputs if self.encodes else self.outputs
        self.image = (math.prod(image[:-2]), *image[-2:])  # maps and channels are one dimension
        sizes = [self.image[1:]]
        for _ in widths:
            sizes.append(tuple((n + 1) // 2 for n in sizes[-1]))
        if min(sizes[-2]) < 2:
            raise ValueError(
                f"{len(widths)} layers halve images of {self.image[1]} x {self.image[2]} to a "
                "pixel before the last of them: pass fewer channels"
            )
        self.smallest = (widths[-1], *sizes[-1])
        vector = length_of(self.outputs if self.encodes else self.inputs)
        between = [hidden] if hidden else []
        lengths = [math.prod(self.smallest), *between, vector]
        act = ACTIVATIONS[activation]
        deep = [self.image[0], *widths]
        if self.encodes:
            pairs = list(itertools.pairwise(deep))
            self.convolutions = nn.Sequential(
                *(each for a, b in pairs for each in (nn.Conv2d(a, b, 3, 2, 1), act()))
            )
        else:
            lengths.reverse()
            layers: list[nn.Module] = []
            for i in range(len(widths), 0, -1):
                # Out of a layer of stride 2 come 2 n - 1 pixels, or 2 n with one of padding.
                padding = tuple(1 - n % 2 for n in sizes[i - 1])
                layers += [nn.ConvTranspose2d(deep[i], deep[i - 1], 3, 2, 1, padding), act()]
            self.convolutions = nn.Sequential(*layers[:-1])
        linear: list[nn.Module] = []
        for a, b in itertools.pairwise(lengths):
            linear += [nn.Linear(a, b), act()]
        self.linear = nn.Sequential(*(linear[:-1] if self.encodes else linear))

    def forward(self, x: Tensor) -> Tensor:
        shape = self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)
        lead = x.shape[: x.dim() - len(shape)]
        if x.dim() < len(shape) or tuple(x.shape[len(lead) :]) != shape:
            raise ValueError(
                f"the input has shape {tuple(x.shape)}, expected rows of shape {shape}: "
                "reshape the data, or build the model for them"
            )
        if self.encodes:
            y = self.convolutions(x.reshape(-1, *self.image))
            y = self.linear(y.flatten(1))
        else:
            y = self.linear(x.reshape(-1, shape[0]))
            y = self.convolutions(y.reshape(-1, *self.smallest))
        out = self.outputs if isinstance(self.outputs, tuple) else (self.outputs,)
        return y.reshape(*lead, *out)


def _is_image(shape: Shape) -> bool:
    return isinstance(shape, tuple) and len(shape) >= 2
