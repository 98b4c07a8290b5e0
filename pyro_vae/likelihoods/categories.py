"""Likelihoods of categories and of grades, one or several columns of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae import distributions, errors
from pyro_vae.distributions.categories import CategoricalColumns, ordinal_logits
from pyro_vae.networks.base import Shape
from pyro_vae.program.families import NetworkLikelihood


def numbers_of(
    num_categories: int | Sequence[int] | None, columns: int, what: str, least: int = 2
) -> list[int]:
    """The number of categories of each column, checked."""
    if num_categories is None:
        raise ValueError(
            f"num_categories is None, expected the number of {what}, or one for each column: give "
            "it, or build the program from data"
        )
    if isinstance(num_categories, str) or not isinstance(num_categories, Sequence):
        return [errors.whole("num_categories", num_categories, least)] * columns
    found = [errors.whole(f"num_categories[{i}]", k, least) for i, k in enumerate(num_categories)]
    if len(found) != columns:
        raise ValueError(
            f"num_categories has {len(found)} numbers, expected one for each of {columns} columns"
        )
    return found


def counted(x: Tensor, kind: str) -> dict[str, Any]:
    """How many codes there are: in each column of a table, in all of an image."""
    flat = x.reshape(len(x), -1)
    wrong = ~((flat == flat.round()) & (flat >= 0))
    if wrong.any():
        row = int(wrong.any(1).nonzero()[0])
        value = flat[row][wrong[row]][0].item()
        raise ValueError(
            f"{kind}: x has the value {value:g} in row {row}, expected codes 0, 1, 2, ...: number "
            "the categories, or choose another likelihood"
        )
    if not len(x):
        return {}
    if x.dim() > 2:
        return {"num_categories": max(2, int(flat.max()) + 1)}
    sizes = [max(2, int(k) + 1) for k in flat.amax(0).tolist()]
    return {"num_categories": sizes[0] if len(set(sizes)) == 1 else sizes}


class Categorical(NetworkLikelihood):
    r"""p(x | z) = prod_d Categorical(softmax(f_d(z))): codes 0, ..., K_d - 1, one a column.

    ``pv.reconstruct`` gives the probabilities of the categories, in one dimension more.

    Args:
        num_categories: K of all columns, or K_d of each.  Inferred from the data: the largest code
            of each column of a table, or of all pixels of an image.  Give it where there are
            categories that these data do not have.
    """

    num_categories: Tensor
    places: Tensor

    def __init__(
        self, *sizes: Any, num_categories: int | Sequence[int] | None = None, **networks: Any
    ) -> None:
        self._categories = num_categories
        super().__init__(*sizes, **networks)
        own = torch.tensor(self.numbers).reshape(self.event)
        self.register_buffer("num_categories", own, persistent=False)
        places = torch.full((len(self.numbers), max(self.numbers)), sum(self.numbers))
        for d, k in enumerate(self.numbers):  # where the logits of a column stand among all
            places[d, :k] = torch.arange(k) + sum(self.numbers[:d])
        self.register_buffer("places", places, persistent=False)

    @classmethod
    def example(cls, **sizes: int) -> Categorical:
        return cls(**sizes, num_categories=list(range(2, 2 + sizes["data_dim"])))

    @classmethod
    def infer(cls, x: Tensor) -> dict[str, Any]:
        return counted(x, cls.__name__)

    @functools.cached_property
    def numbers(self) -> list[int]:
        """K_d of each column."""
        return numbers_of(self._categories, math.prod(self.event), "categories")

    @property
    def outputs(self) -> Shape:
        """K_1 + ... + K_D; for images (K, *event)."""
        if len(self.event) == 1:
            return sum(self.numbers)
        return (max(self.numbers), *self.event)

    def law(self, logits: Tensor) -> dist.TorchDistribution:
        same = len(set(self.numbers)) == 1
        if len(self.event) > 1:  # (..., K, *event)
            logits = logits.movedim(-1 - len(self.event), -1)
        elif same:
            logits = logits.unflatten(-1, (self.event[0], self.numbers[0]))
        else:  # one more, which no column reads
            logits = torch.cat([logits, torch.zeros_like(logits[..., :1])], -1)[..., self.places]
        if same:
            return dist.Categorical(logits=logits)
        return CategoricalColumns(logits, self.num_categories)


class OneHotCategorical(NetworkLikelihood):
    r"""p(x | z) of one-hot columns, K_1 + K_2 + ... zeros and ones a row.

    Args:
        num_categories: the K_d, in their order; inferred from the data where these tell, which they
            do if every category occurs.
    """

    joint = True

    def __init__(
        self, *sizes: Any, num_categories: Sequence[int] | int | None = None, **networks: Any
    ) -> None:
        self._categories = num_categories
        super().__init__(*sizes, **networks)

    @classmethod
    def example(cls, **sizes: int) -> OneHotCategorical:
        return cls(**sizes, num_categories=[sizes["data_dim"]])

    @classmethod
    def infer(cls, x: Tensor) -> dict[str, Any]:
        found: list[int] = []
        sums = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for d in range(x.shape[-1] if x.dim() == 2 and bool(x.sum(0).all()) else 0):
            sums = sums + x[:, d]
            if (sums == 1).all():  # each row has had its one
                found.append(d + 1 - sum(found))
                sums = torch.zeros_like(sums)
        if not found or sum(found) != x.shape[-1] or min(found) < 2:
            raise ValueError(
                "OneHotCategorical: the groups of one-hot columns do not show in x (a category "
                "that no row has, or rows that are not one-hot), expected num_categories=, the "
                "number of categories of each group"
            )
        return {"num_categories": found}

    @functools.cached_property
    def numbers(self) -> list[int]:
        """K_d of each group."""
        length, given = math.prod(self.event), self._categories
        groups = len(given) if isinstance(given, Sequence) else 1
        if isinstance(given, int):
            groups = max(1, length // max(1, given))
        found = numbers_of(given, groups, "categories")
        if len(self.event) != 1 or sum(found) != length:
            raise ValueError(
                f"num_categories is {given}, expected numbers that sum to the {length} columns of "
                f"x, a vector a row: they sum to {sum(found)}"
            )
        return found

    @property
    def outputs(self) -> Shape:
        """The length of x."""
        return sum(self.numbers)

    def law(self, logits: Tensor) -> dist.TorchDistribution:
        return distributions.OneHotColumns(logits, self.numbers)


class Ordinal(NetworkLikelihood):
    r"""p(x <= k | z) = sigmoid(c_k - f_d(z)): grades 0, ..., K_d - 1, whose order counts.

    The cut points c_0 < c_1 < ... are learnt, for each column its own.

    Args:
        num_categories: as of :class:`Categorical`.

    Source: McCullagh (1980), Regression models for ordinal data.
    """

    heads = 1
    num_categories: Tensor

    def __init__(
        self, *sizes: Any, num_categories: int | Sequence[int] | None = None, **networks: Any
    ) -> None:
        super().__init__(*sizes, **networks)
        self.numbers = numbers_of(num_categories, math.prod(self.event), "grades")
        own = torch.tensor(self.numbers).reshape(self.event)
        self.register_buffer("num_categories", own, persistent=False)
        cuts = max(self.numbers) - 1
        # The least cut point, and from each to the next softplus of a gap: at first they are
        # evenly spaced around 0.
        self.first = nn.Parameter(torch.full(self.event, -0.5 * (cuts - 1)))
        self.gaps = nn.Parameter(torch.full((*self.event, cuts - 1), math.log(math.e - 1)))

    @classmethod
    def example(cls, **sizes: int) -> Ordinal:
        return cls(**sizes, num_categories=list(range(3, 3 + sizes["data_dim"])))

    @classmethod
    def infer(cls, x: Tensor) -> dict[str, Any]:
        return counted(x, cls.__name__)

    @property
    def cutpoints(self) -> Tensor:
        """(..., K - 1), increasing; those beyond a column's own mean nothing."""
        gaps = softplus(self.gaps) + 1e-4
        first = self.first.unsqueeze(-1)
        return torch.cat([first, first + gaps.cumsum(-1)], -1)

    def law(self, predictor: Tensor) -> dist.TorchDistribution:
        if len(set(self.numbers)) == 1:
            return dist.Categorical(logits=ordinal_logits(predictor, self.cutpoints))
        logits = ordinal_logits(predictor, self.cutpoints, self.num_categories)
        return CategoricalColumns(logits, self.num_categories)
