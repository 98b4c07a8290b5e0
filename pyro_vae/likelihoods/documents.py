"""Likelihoods of documents, as the counts of their words: topic models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae import distributions, errors
from pyro_vae.likelihoods.counts import start_at
from pyro_vae.program.families import NetworkLikelihood
from pyro_vae.program.parts import Likelihood
from pyro_vae.recording.recipes import LATER


def mean_length(x: Tensor) -> dict[str, Any]:
    """The mean number of words of a document."""
    return {"length": max(1, round(x.sum(-1).double().mean().item()))} if len(x) else {}


class Multinomial(NetworkLikelihood):
    r"""log p(x | z) = sum_w x_w log softmax(f(z))_w: documents of any length, given their length.

    The density is that of the words in their order, as topic models report it: exp(-log p / n) of
    n words is the perplexity.  With one linear map, ``decoder=torch.nn.Linear``, it is the decoder
    of the neural variational document model.

    Args:
        length: the number of words of new documents, and of the mean; inferred from the data, the
            mean length.
        ordered: False counts the orders of the words in, n! / prod_w x_w!.

    Source: Miao, Yu & Blunsom (2016), arXiv:1511.06038.
    """

    heads, joint = 1, True
    normalized = False  # each length has the whole probability

    def __init__(
        self, *sizes: Any, length: int = 100, ordered: bool = True, **networks: Any
    ) -> None:
        super().__init__(*sizes, **networks)
        if len(self.event) != 1:
            raise ValueError(f"data_dim is {self.event}, expected one number of words")
        self.length, self.ordered = errors.whole("length", length), ordered

    @classmethod
    def infer(cls, x: Tensor) -> dict[str, Any]:
        return mean_length(x)

    def start(self, x: Tensor) -> None:
        """Let the last layer start at the frequencies of the words."""
        start_at(self.network, (x.to(torch.get_default_dtype()).mean(0) + 1e-4).log())

    def law(self, logits: Tensor) -> dist.TorchDistribution:
        return distributions.WordCounts(logits, self.length, ordered=self.ordered)


class ProdLDA(Likelihood):
    r"""log p(x | z) = sum_w x_w log softmax(theta B)_w, theta = softmax(z): a product of topics.

    Each of the J topics is a row of B, and a document is a product of experts; the latent Dirichlet
    allocation that it is named for has a mixture of them in its place.

    Args:
        latent_dim, data_dim: the number of topics J, and of words W.
        length: the number of words of new documents; inferred from the data, the mean length.
        mixture: theta softmax(B) in place of softmax(theta B).
        simplex: z is a point of the simplex itself, as under a Dirichlet prior, and is not mapped
            there by a softmax.
        batch_norm: of theta B over the rows of a minibatch, as in the paper.  In training a row's
            density then depends on the others; trained, it does not.

    Source: Srivastava & Sutton (2017), arXiv:1703.01488.

    Example:
        >>> topics = ProdLDA(3, 4)
        >>> topics.top_words(["sea", "ship", "law", "court"], 2)[0]  # doctest: +SKIP
        ['ship', 'sea']
    """

    normalized = False  # each length has the whole probability

    def __init__(
        self,
        latent_dim: int = LATER,
        data_dim: int = LATER,
        *,
        length: int = 100,
        mixture: bool = False,
        simplex: bool = False,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        topics, words = errors.whole("latent_dim", latent_dim), errors.whole("data_dim", data_dim)
        self.length, self.mixture, self.simplex = errors.whole("length", length), mixture, simplex
        self.latents = constraints.simplex if simplex else constraints.real_vector
        self.topics = nn.Parameter(torch.empty(topics, words))
        nn.init.xavier_normal_(self.topics)
        self.norm = nn.BatchNorm1d(words, affine=False) if batch_norm else None

    @classmethod
    def example(cls, **sizes: int) -> ProdLDA:
        return cls(sizes["latent_dim"], sizes["data_dim"])

    @classmethod
    def infer(cls, x: Tensor) -> dict[str, Any]:
        return mean_length(x)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        theta = z if self.simplex else z.softmax(-1)
        if self.mixture:
            logits = (theta @ self._scored(self.topics).softmax(-1)).log()
        else:
            logits = self._scored(theta @ self.topics)
        return distributions.WordCounts(logits, self.length)

    def _scored(self, scores: Tensor) -> Tensor:
        if self.norm is None:
            return scores
        return self.norm(scores.reshape(-1, scores.shape[-1])).reshape(scores.shape)

    def top_words(self, vocabulary: Sequence[str], number: int = 10) -> list[list[str]]:
        """The words of the largest weights of each topic, the first first.

        Args:
            vocabulary: the words by column of x.
            number: of words a topic.
        """
        if len(vocabulary) != self.topics.shape[1]:
            raise ValueError(
                f"vocabulary has {len(vocabulary)} words, expected {self.topics.shape[1]}, as x"
            )
        number = errors.whole("number", number, 1, len(vocabulary))
        best = self.topics.detach().topk(number, -1).indices
        return [[str(vocabulary[w]) for w in row] for row in best.tolist()]
