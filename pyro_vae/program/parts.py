r"""What the three parts of a VAE promise: the recipe for one of your own.

A part is a ``torch.nn.Module`` that owns its network and returns a distribution of Pyro or torch.
Any module that does so may be passed; a subclass of the class here is also remembered with the
arguments of its constructor, so that it has a telling repr, is told apart from others by
``fit(resume=True)``, and, standing in a folder of ours, is loaded by name and has flags at the
command line.

A subclass may also be made without its sizes, ``Laplace(scale=2.0)``: it is then a recipe of
itself, to which ``pv.VAE.build`` gives ``latent_dim``, ``data_dim`` and what else of :data:`SIZES`
its constructor asks for by name.

J latents, D columns of x, H hidden units; ``...`` are any leading dimensions, such as (K, B).

Most likelihoods and posteriors are a network and a law of what it returns:
:mod:`pyro_vae.program.families` has the network, and each family is its law.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.recording import record_of, shown
from pyro_vae.recording.recipes import Sizable

if TYPE_CHECKING:
    import pyro.distributions as dist


def unchecked(law: Any) -> Any:
    """A distribution that does not look at values, nor those that it is made of; or a dict."""
    if isinstance(law, Mapping):
        return {name: unchecked(each) for name, each in law.items()}
    law._validate_args = False
    if hasattr(law, "base_dist"):
        unchecked(law.base_dist)
    return law


# What ``pv.VAE.build`` knows, and gives to the parts whose constructors have a name for it:
# J; D, or the shape of one x; numbers of covariates a row; the network, and the width and first
# weights of the one that stands in where none is given; the program's own posterior.
SIZES = (
    "latent_dim", "data_dim", "given_dim", "network", "hidden_dim", "init_std", "posterior",
)  # fmt: skip


class Part(Sizable, nn.Module):
    """What the three have in common: see :class:`Prior`, :class:`Likelihood`, :class:`Posterior`.

    Example:
        >>> class Scaled(Part):
        ...     def __init__(self, scale=1.0):
        ...         super().__init__()
        ...         self.s = scale
        >>> Scaled(scale=2.0)
        Scaled(scale=2.0)
    """

    sizes = SIZES

    # Whether the density integrates (or sums) to one.  False is a statement, not an excuse: nats of
    # such a part can be compared with those of the same part alone.
    normalized: bool = True

    @classmethod
    def example(cls, **sizes: int) -> Any:
        """A small one, for the tests that every class of a folder goes through.

        Args:
            sizes: ``latent_dim``, and, but for priors, ``data_dim`` and ``hidden_dim``.

        Write your own where the constructor needs more than these, or takes other names for them.
        """
        return cls(**sizes)

    @classmethod
    def infer(cls, x: Tensor) -> dict[str, Any]:
        """Arguments of the constructor that follow from the data, where they are not given.

        Args:
            x: the observed rows, (N, ...).
        """
        return {}

    def inferred(self, x: Tensor) -> Any:
        """A recipe with what follows from the data; a finished part as it is."""
        return self.with_options(**self.infer(x)) if self.unsized else self

    def start(self, x: Tensor) -> None:
        """Take initial values from the data, (N, ...); nothing by default."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Its distribution; unchecked under ``torch.export``, which cannot branch on values."""
        if self.unsized:
            raise ValueError(self.say_unsized())
        if not torch.compiler.is_exporting():
            return super().__call__(*args, **options)
        with pyro.validation_enabled(False):
            return unchecked(super().__call__(*args, **options))

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, ahead of the networks."""
        return shown(record_of(self)).partition("(")[2].removesuffix(")")

    def __repr__(self) -> str:
        return Sizable.__repr__(self) if self.unsized else nn.Module.__repr__(self)


class Prior(Part):
    r"""p(z): called as ``prior()``, for all rows alike.

    * **in**: nothing.
    * **out**: a distribution with batch shape ``()`` and event shape ``(J,)``:
      ``dist.Normal(zeros, 1.0).to_event(1)``.  The latents are a vector, so that networks can
      take them.
    * ``.sample()`` is used by ``pv.sample``, and by the sleep phase, which dreams; ``.log_prob``
      by everything else.
    * Parameters are learnt with the model's.  Constant tensors are buffers
      (``register_buffer("zero", ..., persistent=False)``), so that they move with the module.
    * ``support`` says where z lives, so that a posterior that fits can be chosen.
    * A prior with an argument, ``forward(self, given)``, is called with the covariates of a row,
      the dict of the entries of x but "x", and returns batch shape ``(B,)``: p(z | given).

    Example:
        >>> import pyro.distributions as dist, torch
        >>> class Wide(Prior):
        ...     def __init__(self, latent_dim: int, scale: float = 3.0) -> None:
        ...         super().__init__()
        ...         self.scale = scale
        ...         self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)
        ...
        ...     def forward(self):
        ...         return dist.Normal(self.zero, self.scale).to_event(1)
        >>> Wide(2)().event_shape
        torch.Size([2])
    """

    support: Any = constraints.real_vector

    def forward(self) -> dist.TorchDistribution:
        raise _unwritten(self, "forward(self)")


class MeanRange(NamedTuple):
    """Where the mean of a likelihood can be, and what to do with data that lie elsewhere."""

    low: float
    high: float
    advice: str = "choose a likelihood whose mean reaches them"


class Likelihood(Part):
    r"""p(x | z): called as ``likelihood(z)``, and the owner of the decoder.

    * **in**: z, ``(..., J)``.
    * **out**: a distribution with batch shape ``(...)`` and event shape ``(D,)``, or the event
      shape of x: ``dist.Bernoulli(logits=self.network(z)).to_event(1)``.
    * ``.log_prob(x)`` is used in training, evidence and chains; ``.sample()`` by ``pv.sample`` and
      the sleep phase; ``.mean``, where there is one, is the picture that ``pv.reconstruct`` and
      ``pv.sample`` show.
    * A likelihood of two arguments, ``forward(self, z, given)``, is called with the covariates too.
    * Its support says which x are possible, and ``fit`` refuses others before it starts.
    * ``latents``: where z must lie, if that matters: on the simplex, say.
    * ``mean_range``: where a link such as a sigmoid keeps the mean in less than the support, say
      so, ``MeanRange(0.0, 1.0)``; else data far from there are learnt as noise without a word.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> class Exponential(Likelihood):
        ...     def __init__(self, latent_dim: int, data_dim: int, hidden_dim: int) -> None:
        ...         super().__init__()
        ...         self.network = torch.nn.Sequential(
        ...             torch.nn.Linear(latent_dim, hidden_dim),
        ...             torch.nn.Tanh(),
        ...             torch.nn.Linear(hidden_dim, data_dim),
        ...         )
        ...
        ...     def forward(self, z):
        ...         return dist.Exponential(self.network(z).exp()).to_event(1)
        >>> Exponential(2, 5, 8)(torch.zeros(7, 3, 2)).batch_shape
        torch.Size([7, 3])
    """

    mean_range: MeanRange | None = None
    latents: Any = None  # where z must lie, a constraint of torch; None: anywhere

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        raise _unwritten(self, "forward(self, z)")


def mean_range_of(program: nn.Module) -> MeanRange | None:
    """What the one part of a program that has a range of means says, wherever it stands in it."""
    ranges = [getattr(module, "mean_range", None) for module in program.modules()]
    said = [each for each in ranges if isinstance(each, MeanRange)]
    return said[0] if len(said) == 1 else None


class Posterior(Part):
    r"""q(z | x): called as ``posterior(x)``, and the owner of the encoder.

    * **in**: x, ``(B, D)``; the whole dict, where the program is called with one.
    * **out**: a distribution with batch shape ``(B,)`` and event shape ``(J,)``:
      ``dist.Normal(mean, scale).to_event(1)``.  A row of it follows from that row of x alone.
    * Draws are reparameterized where the distribution has ``rsample``, which most objectives use;
      ``ScoreFunction``, ``WakeSleep`` and ``ReweightedWakeSleep`` do without.
    * ``.mean`` is the code: ``pv.encode`` returns it, ``pv.reconstruct`` decodes it, and
      ``Autoencoder`` trains it.  ``.log_prob`` is used at z of its own and of dreams.
    * ``support`` is where its draws lie.
    * Bound scales from below (``pyro_vae.networks.positive``): an infinite density ends a fit.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> class Shared(Posterior):
        ...     def __init__(self, data_dim: int, latent_dim: int) -> None:
        ...         super().__init__()
        ...         self.mean = torch.nn.Linear(data_dim, latent_dim)
        ...         self.log_scale = torch.nn.Parameter(torch.zeros(latent_dim))
        ...
        ...     def forward(self, x):
        ...         return dist.Normal(self.mean(x), self.log_scale.exp()).to_event(1)
        >>> Shared(5, 2)(torch.zeros(3, 5)).batch_shape
        torch.Size([3])
    """

    support: Any = constraints.real_vector

    def forward(self, x: Any) -> dist.TorchDistribution:
        raise _unwritten(self, "forward(self, x)")


def _unwritten(part: nn.Module, method: str) -> TypeError:
    return TypeError(
        f"{type(part).__name__} defines no {method}: write it, returning a distribution"
    )
