r"""Likelihoods and posteriors that are a network and a law of what it returns.

.. math:: p(x \mid z) = F(f_1(z), \dots, f_h(z)), \qquad q(z \mid x) = G(g_1(x), \dots, g_h(x))

A subclass says how many maps ``f_i`` there are and what the law of them is::

    >>> import pyro.distributions as dist, torch
    >>> class Poisson(NetworkLikelihood):
    ...     heads = 1
    ...     def law(self, log_rate):
    ...         return dist.Poisson(log_rate.exp())
    >>> Poisson(2, 5)(torch.zeros(7, 2)).event_shape
    torch.Size([5])

Options come with a constructor that hands the rest on; the class has all arguments by name, as
``inspect.signature``, records and flags see them::

    >>> class StudentT(NetworkLikelihood):
    ...     heads = 2
    ...     def __init__(self, *sizes, df: float = 5.0, **networks):
    ...         super().__init__(*sizes, **networks)
    ...         self.df = df
    ...     def law(self, location, log_scale):
    ...         return dist.StudentT(self.df, location, log_scale.exp())
    >>> StudentT(df=3.0).sized(latent_dim=2, data_dim=5)(torch.zeros(7, 2)).batch_shape
    torch.Size([7])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.networks.base import Shape, length_of, network_of, shape_of
from pyro_vae.networks.mlp import MLP
from pyro_vae.program.laws import as_pyro
from pyro_vae.program.parts import Likelihood, Posterior
from pyro_vae.recording.recipes import LATER


class _Networked:
    """What both have: the number of maps, the network, and its outputs by map."""

    heads: int = 1
    network: nn.Module

    def _make_network(
        self, network: Any, inputs: Shape, hidden_dim: Any, init_std: Any, given_dim: Any
    ) -> None:
        self.given_dim = errors.whole("given_dim", given_dim, 0)
        hidden_dim = errors.whole("hidden_dim", hidden_dim)
        if self.given_dim:  # covariates stand behind, in one vector
            inputs = length_of(inputs) + self.given_dim
        # (The paper's network returns all maps as one vector: its weights are named alike.)
        self.network = network_of(
            network,
            inputs,
            self.outputs,
            lambda i, o: MLP(i, hidden_dim, o, init_std=init_std),
        )

    @property
    def outputs(self) -> Shape:
        """The shape of what the network returns for one row."""
        raise NotImplementedError

    def law(self, *heads: Any) -> Any:
        """The distribution of what the network returns."""
        raise TypeError(
            f"{type(self).__name__} defines no law(self, ...): write it, returning a distribution "
            f"of the {self.heads} map{'s' if self.heads > 1 else ''} of the network"
        )

    def _joined(self, value: Tensor, event: int, given: Any) -> Tensor:
        """The network's input: a row, and behind it the covariates in the order of their names."""
        if not self.given_dim:
            if given:
                raise ValueError(
                    f"{type(self).__name__} is given the covariates {', '.join(sorted(given))}, "
                    "expected none: it was built without given_dim"
                )
            return value
        lead = value.shape[: value.dim() - event]
        beside = joined(given or {})
        if beside.shape[-1] != self.given_dim:
            raise ValueError(
                f"the covariates {', '.join(sorted(given or {})) or '(none)'} are "
                f"{beside.shape[-1]} numbers a row, expected given_dim = {self.given_dim}"
            )
        beside = beside.to(value.dtype).expand(*lead, self.given_dim)
        return torch.cat([value.reshape(*lead, -1), beside], -1)


def joined(given: Mapping[str, Tensor]) -> Tensor:
    """Covariates as one vector a row, (B, C), in the order of their names."""
    if not given:
        return torch.zeros(0)
    return torch.cat([given[name].flatten(1) if given[name].dim() > 1 else given[name].unsqueeze(1)
                      for name in sorted(given)], -1)  # fmt: skip


class NetworkLikelihood(_Networked, Likelihood):
    """p(x | z) as the law of a network's outputs.

    Args:
        latent_dim: J.
        data_dim: D, or the shape of one x, such as (28, 28).
        hidden_dim: H of the network where none is given.
        given_dim: numbers of covariates a row, which stand behind z; 0 without any.
        network: of z; see :func:`pyro_vae.networks.base.network_of`.  By default the paper's, one
            hidden layer with tanh.
        init_std: of the default network; None is torch's own initialization.

    A subclass defines :attr:`heads`, the number of maps of the shape of x, and ``law``, a
    distribution of each number of x, of which the product is taken; ``joint = True`` says that it
    is one of the whole row.  ``outputs`` may be defined in place of ``heads``, the shape of what
    the network returns, which is then passed to ``law`` as it is.
    """

    joint = False

    def __init__(
        self,
        latent_dim: int = LATER,
        data_dim: int | Sequence[int] = LATER,
        hidden_dim: int = 500,
        *,
        given_dim: int = 0,
        network: nn.Module | None = None,
        init_std: float | None = 0.01,
    ) -> None:
        super().__init__()
        self.latent_dim = errors.whole("latent_dim", latent_dim)
        shape = shape_of("data_dim", data_dim)
        self.event: tuple[int, ...] = (shape,) if isinstance(shape, int) else shape
        self._make_network(network, self.latent_dim, hidden_dim, init_std, given_dim)

    @property
    def outputs(self) -> Shape:
        """(heads, *event); for vectors heads * D."""
        if len(self.event) == 1:
            return self.heads * self.event[0]
        return (self.heads, *self.event)

    def forward(self, z: Tensor, given: Mapping[str, Tensor] | None = None) -> Any:
        out = self.network(self._joined(z, 1, given))
        return self.finished(self.law(*self.maps(out)))

    def maps(self, out: Tensor) -> Sequence[Tensor]:
        """What the network returned, by map."""
        if type(self).outputs is not NetworkLikelihood.outputs or self.heads == 1:
            own = type(self).outputs is not NetworkLikelihood.outputs
            return [out if own or len(self.event) == 1 else out.squeeze(-1 - len(self.event))]
        if len(self.event) == 1:
            return out.chunk(self.heads, dim=-1)
        return out.unbind(-1 - len(self.event))

    def finished(self, law: Any) -> Any:
        """The law of a row, from that of each number of it."""
        law = as_pyro(law, "x")
        return law if self.joint else law.to_event(len(self.event))


class NetworkPosterior(_Networked, Posterior):
    """q(z | x) as the law of a network's outputs.

    Args:
        data_dim: D, or the shape of one x, such as (28, 28).
        latent_dim: J.
        hidden_dim: H of the network where none is given.
        given_dim: numbers of covariates a row, which stand behind x; 0 without any.
        network: of x; see :func:`pyro_vae.networks.base.network_of`.  By default the paper's, one
            hidden layer with tanh.
        init_std: of the default network; None is torch's own initialization.

    A subclass defines :attr:`heads`, the number of maps of J numbers, and ``law``, a distribution
    of each number of z, of which the product is taken; ``joint = True`` says that it is one of the
    whole z.  ``outputs`` may be defined in place of ``heads``, the length of what the network
    returns, which is then passed to ``law`` as it is.
    """

    joint = False

    def __init__(
        self,
        data_dim: int | Sequence[int] = LATER,
        latent_dim: int = LATER,
        hidden_dim: int = 500,
        *,
        given_dim: int = 0,
        network: nn.Module | None = None,
        init_std: float | None = 0.01,
    ) -> None:
        super().__init__()
        self.latent_dim = errors.whole("latent_dim", latent_dim)
        shape = shape_of("data_dim", data_dim)
        self.event: tuple[int, ...] = (shape,) if isinstance(shape, int) else shape
        self._make_network(network, shape, hidden_dim, init_std, given_dim)

    @property
    def outputs(self) -> Shape:
        """heads * J."""
        return self.heads * self.latent_dim

    def forward(self, x: Tensor | Mapping[str, Tensor]) -> Any:
        given: dict[str, Tensor] = {}
        if isinstance(x, Mapping):
            given = {name: value for name, value in x.items() if name != "x"}
            x = x["x"]
        if not x.is_floating_point():  # codes and counts
            x = x.to(next((p.dtype for p in self.parameters()), torch.float32))
        out = self.network(self._joined(x, len(self.event), given))
        own = type(self).outputs is not NetworkPosterior.outputs
        law = as_pyro(self.law(*([out] if own else out.chunk(self.heads, dim=-1))), "z")
        return law if self.joint else law.to_event(1)
