"""Networks of codes of categories."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.networks.base import Network, Shape, length_of, network_of, shape_of
from pyro_vae.networks.mlp import MLP
from pyro_vae.recording.recipes import LATER


class Embedding(Network, nn.Module):
    """Codes of categories to vectors, one table of embeddings a column, and a network behind them.

    Args:
        inputs, outputs: lengths, or the shape of one row, as the network behind has them.
        num_categories: of every column, codes 0, 1, ...
        embedding_dim: length of the vector that stands for a code.
        network: of the vectors of all columns, one behind another, without sizes;
            ``MLP(hidden=...)``.

    Codes are rounded, and those out of range count as the nearest: a likelihood of categories
    refuses such data before anything is trained.
    """

    def __init__(
        self,
        inputs: int | Sequence[int] = LATER,
        outputs: int | Sequence[int] = LATER,
        *,
        num_categories: int,
        embedding_dim: int = 8,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.inputs: Shape = shape_of("inputs", inputs)
        self.num_categories = errors.whole("num_categories", num_categories, 2)
        width = errors.whole("embedding_dim", embedding_dim)
        columns = length_of(self.inputs)
        self.table = nn.Parameter(torch.randn(columns, self.num_categories, width))
        self.network = network_of(
            network, columns * width, shape_of("outputs", outputs), lambda i, o: MLP(i, 500, o)
        )

    def forward(self, x: Tensor) -> Tensor:
        depth = 1 if isinstance(self.inputs, int) else len(self.inputs)
        codes = x.flatten(-depth) if depth > 1 else x
        kinds = torch.arange(self.num_categories, device=x.device)
        codes = codes.round().clamp(0, self.num_categories - 1)
        ones = (codes.unsqueeze(-1) == kinds).to(self.table.dtype)  # (..., columns, kinds)
        vectors = torch.einsum("...dk,dkw->...dw", ones, self.table)
        return self.network(vectors.flatten(-2))
