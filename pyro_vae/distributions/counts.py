"""Laws of counts: of events by mean and overdispersion, and of the words of a document."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from pyro_vae import errors

LARGE = 100.0  # from where Stirling's series has all digits of double precision that cancel


def log_rising(c: Tensor, x: Tensor) -> Tensor:
    """log Gamma(c + x) - log Gamma(c); by Stirling's series where both are large and cancel."""

    def series(c: Tensor) -> Tensor:
        return (1 / 12 - (1 / 360 - 1 / (1260 * c * c)) / (c * c)) / c

    big = c.clamp(min=LARGE)
    far = (big - 0.5) * torch.log1p(x / big) + x * (big + x).log() - x
    far = far + series(big + x) - series(big)
    near = c.clamp(max=LARGE)
    return torch.where(c > LARGE, far, (near + x).lgamma() - near.lgamma())


class NegativeBinomial2(dist.TorchDistribution):
    r"""Counts of mean m and variance m + m^2 / c: Poisson counts at rates Gamma(c, c / m).

    The parameters of Stan's and NumPyro's law of that name; torch's has c and m / (c + m).

    Args:
        mean: m.
        concentration: c, the inverse of the dispersion; large, the counts are a Poisson's.

    Example:
        >>> NegativeBinomial2(torch.tensor(3.0), torch.tensor(2.0)).variance
        tensor(7.5000)
    """

    arg_constraints: ClassVar = {
        "mean": constraints.nonnegative,
        "concentration": constraints.positive,
    }
    support = constraints.nonnegative_integer
    mean: Any = None  # a parameter, where torch's base class has a property

    def __init__(self, mean: Any, concentration: Any, *, validate_args: bool | None = None) -> None:
        self.mean, self.concentration = broadcast_all(mean, concentration)
        super().__init__(self.mean.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.mean = self.mean.expand(batch_shape)
        new.concentration = self.concentration.expand(batch_shape)
        dist.TorchDistribution.__init__(new, Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def variance(self) -> Tensor:
        return self.mean + self.mean.square() / self.concentration

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        m, c = self.mean, self.concentration
        never = -c * torch.log1p(m / c)  # log P(0)
        return log_rising(c, value) - (value + 1).lgamma() + never + value.xlogy(m / (c + m))

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            spread = torch._standard_gamma(self.concentration.expand(shape)) / self.concentration
            return torch.poisson(self.mean * spread)


class ZeroInflated(dist.ZeroInflatedDistribution):
    r"""Counts that are zero with probability g, else those of another law; Pyro's, mended.

    Pyro's own can be expanded no more once it was asked for a mean or for draws.

    Args:
        base_dist: the other law, of single counts.
        gate_logits: log(g / (1 - g)).
    """

    def __init__(
        self, base_dist: Any, gate_logits: Tensor, *, validate_args: bool | None = None
    ) -> None:
        super().__init__(base_dist, gate_logits=gate_logits, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = type(self).__new__(type(self)) if _instance is None else _instance
        gate, base = self.gate_logits.expand(batch_shape), self.base_dist.expand(batch_shape)
        dist.ZeroInflatedDistribution.__init__(new, base, gate_logits=gate, validate_args=False)
        new._validate_args = self._validate_args
        return new


class WordCounts(dist.TorchDistribution):
    r"""The words of a document, counted: log p(x) = sum_w x_w log p_w, given its length.

    That is the probability of the words in their order, in which topic models report perplexity,
    exp(-sum of log p / sum of lengths).  The number of orders, n! / prod_w x_w!, depends on no
    parameter and is left out; with it this is the multinomial law.  Each row of x may be of
    another length.

    Args:
        logits: (..., W), log p_w up to a constant.
        length: the number of words of a draw, and of the mean; without one there are neither.
        ordered: False counts the orders in: the multinomial law of the counts, given their sum.

    Example:
        >>> law = WordCounts(torch.zeros(4), length=8)
        >>> law.mean
        tensor([2., 2., 2., 2.])
    """

    arg_constraints: ClassVar = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self,
        logits: Tensor,
        length: int | None = None,
        *,
        ordered: bool = True,
        validate_args: bool | None = None,
    ) -> None:
        self.logits = logits.log_softmax(-1)
        self.length = length if length is None else errors.whole("length", length)
        self.ordered = ordered
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.logits = self.logits.expand(*batch_shape, -1)
        new.length, new.ordered = self.length, self.ordered
        shapes = Size(batch_shape), self.event_shape
        dist.TorchDistribution.__init__(new, *shapes, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def probs(self) -> Tensor:
        return self.logits.exp()

    @property
    def mean(self) -> Tensor:
        return self._needed_length() * self.probs

    @property
    def variance(self) -> Tensor:
        return self._needed_length() * self.probs * (1 - self.probs)

    def _needed_length(self) -> int:
        if self.length is None:
            raise ValueError(
                "a document has no length, expected the number of its words: build the law with "
                "length=n"
            )
        return self.length

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        words = (value * self.logits).sum(-1)
        if self.ordered:
            return words
        return words + (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        law = dist.Multinomial(self._needed_length(), logits=self.logits, validate_args=False)
        return law.sample(Size(sample_shape))


def perplexity(log_p: Tensor, lengths: Tensor, *, by_document: bool = True) -> Tensor:
    """exp(-log p / n), of log probabilities of documents with n words each, or of their bounds.

    Args:
        log_p: nats a document, (N,), of the words in their order.
        lengths: the numbers of words, (N,).
        by_document: of the mean over documents of log p / n, as in the papers on neural topic
            models; False of sum log p / sum n, in which long documents count more.

    Example:
        >>> round(perplexity(torch.tensor([-2.0, -9.0]), torch.tensor([2, 9])).item(), 4)
        2.7183
    """
    mean = (log_p / lengths).mean() if by_document else log_p.sum() / lengths.sum()
    return (-mean).exp()
