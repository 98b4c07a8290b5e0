"""Tables of mixed columns: a likelihood for each group of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.program.parts import Likelihood
from pyro_vae.recording.recipes import LATER


class Columns(Likelihood):
    r"""p(x | z) = prod_g p_g(x_g | z), x_g the columns of group g.

    Args:
        groups: name of a site -> (likelihood without sizes, columns): numbers of columns, a single
            one, or (first, last + 1) as a slice or ``range``.  Each column stands in one group.
        latent_dim, data_dim, hidden_dim: J, D and H.
        given_dim, network, init_std: of each likelihood, where it was given none.

    Each group is an observed site of its own, under its name: evidence, ``pv.sample``,
    ``pv.reconstruct`` and ArviZ have them by these names, and the density of a row is their sum.

    Example:
        >>> from pyro_vae.likelihoods import Bernoulli, Gaussian
        >>> table = Columns({
        ...     "sizes": (Gaussian(sigmoid_mean=False), [0, 1]),
        ...     "healthy": (Bernoulli(), 2),
        ... }).sized(latent_dim=2, data_dim=3)
        >>> {name: tuple(law.event_shape) for name, law in table(torch.zeros(5, 2)).items()}
        {'sizes': (2,), 'healthy': (1,)}

    Raises:
        ValueError: a column in no group or in two, or out of range.

    Source: Nazabal et al. (2020), arXiv:1807.03653, without their normalization and hierarchy.
    """

    def __init__(
        self,
        groups: Mapping[str, Any],
        latent_dim: int = LATER,
        data_dim: int = LATER,
        hidden_dim: int = 500,
        *,
        given_dim: int = 0,
        network: nn.Module | None = None,
        init_std: float | None = 0.01,
    ) -> None:
        super().__init__()
        if not isinstance(data_dim, int):
            raise ValueError(
                f"data_dim is {data_dim!r}, expected the number of columns of a table (N, D)"
            )
        self.columns = columns_of(groups, data_dim)
        sizes = {
            "latent_dim": latent_dim,
            "hidden_dim": hidden_dim,
            "given_dim": given_dim,
            "network": network,
            "init_std": init_std,
        }
        self.parts = nn.ModuleDict()
        for name, (part, _) in groups.items():
            if not isinstance(part, nn.Module):
                raise TypeError(
                    f'groups["{name}"] has {part!r}, expected a likelihood without sizes, such as '
                    "likelihoods.Gaussian(), and its columns"
                )
            if isinstance(part, Likelihood):
                part = part.sized(**sizes, data_dim=len(self.columns[name]))
            self.parts[name] = part
        for name, index in self.columns.items():
            self.register_buffer(f"columns_of_{name}", torch.tensor(index), persistent=False)

    @classmethod
    def example(cls, **sizes: Any) -> Columns:
        from pyro_vae.likelihoods.gaussian import Gaussian

        rest = list(range(sizes["data_dim"] - 1))
        groups = {"last": (Gaussian(sigmoid_mean=False), -1 + sizes["data_dim"]),
                  "rest": (Gaussian(), rest)}  # fmt: skip
        return cls(groups, **sizes)

    def inferred(self, x: Tensor) -> Any:
        """With what each group infers from its columns."""
        if self._recipe is None or x.dim() != 2:
            return self
        groups = {}
        for name, columns in columns_of(self._recipe["groups"], x.shape[1]).items():
            part, own = self._recipe["groups"][name]
            if isinstance(part, Likelihood):
                part = part.inferred(x[:, columns])
            groups[name] = (part, own)
        return type(self)(**{**self._recipe, "groups": groups})

    def forward(self, z: Tensor, given: Mapping[str, Tensor] | None = None) -> Any:
        return {name: part(z, given) if given else part(z) for name, part in self.parts.items()}

    def parts_of(self, x: Tensor) -> dict[str, Tensor]:
        """The columns of each group, (B, columns)."""
        return {n: x.index_select(-1, getattr(self, f"columns_of_{n}")) for n in self.columns}

    def joined(self, parts: Mapping[str, Tensor]) -> Tensor:
        """x again, (..., D), from its groups: what :meth:`parts_of` took apart."""
        taken = [column for columns in self.columns.values() for column in columns]
        order = sorted(range(len(taken)), key=taken.__getitem__)
        together = torch.cat([parts[name] for name in self.columns], -1)
        return together[..., order]

    def start(self, x: Tensor) -> None:
        for name, value in self.parts_of(x).items():
            start = getattr(self.parts[name], "start", None)
            if callable(start):
                start(value)


def columns_of(groups: Mapping[str, Any], data_dim: int) -> dict[str, list[int]]:
    """Which columns each group has, checked."""
    found: dict[str, list[int]] = {}
    taken: dict[int, str] = {}
    if not isinstance(groups, Mapping) or not groups:
        raise ValueError(
            f"groups is {groups!r}, expected a dict of (likelihood, columns) by the site's name"
        )
    for name, pair in groups.items():
        if not isinstance(name, str) or not name.isidentifier() or name == "z":
            raise ValueError(
                f'groups has the name {name!r}, expected one that Python takes, not "z"'
            )
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f'groups["{name}"] is {pair!r}, expected (likelihood, columns)')
        chosen = pair[1]
        if isinstance(chosen, slice):
            chosen = range(*chosen.indices(data_dim))
        chosen = [chosen] if isinstance(chosen, int) else list(chosen)
        for column in chosen:
            errors.whole(f'a column of "{name}"', column, 0, most=data_dim - 1)
            if column in taken:
                raise ValueError(
                    f'column {column} is in the groups "{taken[column]}" and "{name}", expected '
                    "one: a number is observed once"
                )
            taken[column] = name
        found[name] = chosen
    left = sorted(set(range(data_dim)) - set(taken))
    if left:
        raise ValueError(
            f"column{'s' if len(left) > 1 else ''} {', '.join(map(str, left))} of {data_dim} "
            "in no group: name a likelihood for each"
        )
    return found
