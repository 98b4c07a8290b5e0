r"""Normalizing flows as distributions of Pyro.  The transforms are zuko's, or torch's.

Importing zuko switches the validation of all distributions of torch off; here it is imported with
that left as it is, so other modules take zuko from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyro_vae import errors

_BEFORE = {name: vars(Distribution)[name] for name in ("_validate_args", "arg_constraints")}
try:
    import zuko
finally:
    for _name, _value in _BEFORE.items():
        setattr(Distribution, _name, _value)

for _law in vars(zuko.distributions).values():  # what zuko said of all laws of torch, of its own
    if getattr(_law, "__module__", None) == zuko.distributions.__name__ and isinstance(
        getattr(_law, "arg_constraints", None), property
    ):
        _law.arg_constraints = {}

__all__ = ["NormalizingFlow", "masked_flow", "zuko"]


class NormalizingFlow(dist.TorchDistribution):
    r"""z = g(u), u ~ base: :math:`\log p(z) = \log p(u) - \log |\det \partial g / \partial u|`.

    Args:
        transform: g, a bijection of vectors, with zuko's ``call_and_ladj``.
        base: the law of u, batch shape (...), event shape (J,).

    It knows its own last draw again, as an object, and with it the density there: the draw of an
    inverse autoregressive flow is scored without the J passes that lead another z back to its u.
    There is no mean in closed form, and none is made up.

    Source: Rezende & Mohamed (2015), arXiv:1505.05770, equation (5).
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, transform: Any, base: dist.TorchDistribution) -> None:
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)
        self.transform, self.base_dist = transform, base
        self._last: tuple[Tensor, Tensor, bool] | None = None

    @classmethod
    def of_zuko(cls, flow: Any) -> NormalizingFlow:
        """zuko's distribution of that name as one of Pyro, which can stand in ``pyro.sample``."""
        return cls(flow.transform.inv, flow.base)

    def expand(self, batch_shape: Any, _instance: Any = None) -> NormalizingFlow:
        return NormalizingFlow(self.transform, self.base_dist.expand(torch.Size(batch_shape)))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        u = self.base_dist.rsample(torch.Size(sample_shape))
        z, log_det = self.transform.call_and_ladj(u)
        self._last = z, self.base_dist.log_prob(u) - log_det, torch.is_grad_enabled()
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        if self._last is not None:
            z, log_prob, has_gradient = self._last
            if value is z and (has_gradient or not torch.is_grad_enabled()):
                return log_prob
        u, log_det = self.transform.inv.call_and_ladj(value)
        return self.base_dist.log_prob(u) + log_det


def masked_flow(
    features: int,
    context: int = 0,
    *,
    transforms: int,
    hidden: Sequence[int],
    bins: int | None = None,
    **options: Any,
) -> nn.Module:
    """Autoregressive bijections of vectors by masked networks, each in the reverse order.

    Args:
        features, context: sizes of the vectors, and of what else the networks see.
        transforms: how many.
        hidden: sizes of the hidden layers of each network.
        bins: of rational-quadratic splines; None for affine maps.
        options: of zuko's transforms.

    Returns:
        A module; called with the context, or None, it gives the bijection.
    """
    errors.whole("transforms", transforms)
    if isinstance(hidden, str) or not isinstance(hidden, Sequence) or not hidden:
        raise ValueError(f"hidden is {hidden!r}, expected sizes of hidden layers, (64, 64)")
    options["hidden_features"] = [errors.whole("hidden", size) for size in hidden]
    if bins is not None:
        errors.whole("bins", bins, 2)
        options["univariate"] = zuko.transforms.MonotonicRQSTransform
        options["shapes"] = [(bins,), (bins,), (bins - 1,)]
    order = torch.arange(features)
    made = [
        zuko.flows.MaskedAutoregressiveTransform(
            features, context, order=order if number % 2 == 0 else order.flip(0), **options
        )
        for number in range(transforms)
    ]
    for each in made:  # near the identity
        last = each.hyper[-1] if hasattr(each, "hyper") else each
        for parameter in last.parameters():
            parameter.data.mul_(0.1)
    return _Transforms(*made)


class _Transforms(zuko.lazy.LazyComposedTransform):
    """Several, one behind the other."""

    def __repr__(self) -> str:
        with torch.random.fork_rng(devices=[]):  # zuko's draws numbers
            return super().__repr__()
