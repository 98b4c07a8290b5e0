r"""What judges the guide's draws of each datum, computed from the very draws that are stored.

.. math:: \log w_{kb} = \log p(x_b, z_{kb}) - \log q(z_{kb} \mid x_b)

gives khat, ess, the ELBO (the mean of log w) and log p(x) (the log of the mean of w).  The KL term
of a latent comes with one value for each of its coordinates, where prior and guide have independent
coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.densities.enumeration import model_sites
from pyro_vae.densities.kl import closed_kl
from pyro_vae.densities.look import Look, looking
from pyro_vae.densities.particles import takes_repeated
from pyro_vae.densities.sites import Site, latents_of, values_of
from pyro_vae.densities.traces import sites_of
from pyro_vae.evaluation import RowFunction, row_chunks
from pyro_vae.evidence.weights import from_log_weights
from pyro_vae.inference_data.draws import as_array, numbered, pieces
from pyro_vae.program.rows import Rows, num_rows, repeated

MOST_DRAWS = 100  # that a KL term is averaged over, where one does not do


def judged(lp: np.ndarray, log_q: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of each datum from densities (K, ...) of its K draws; nats, float64."""
    log_w = torch.from_numpy(np.asarray(lp - log_q).reshape(len(lp), -1))
    evidence = from_log_weights(log_w)
    found = {
        "khat": evidence.khat,
        "ess": evidence.ess,
        "elbo": log_w.double().mean(0),
        "log_evidence": evidence.value,
        "log_evidence_standard_error": evidence.standard_error,
    }
    return {name: value.numpy().reshape(lp.shape[1:]) for name, value in found.items()}


# --- KL terms -------------------------------------------------------------------------------------


class Terms:
    """The KL terms of a program's latents: which there are, how each is computed.

    Attributes:
        names: the name of the variable of each latent, ``kl``, or ``kl_a``, ``kl_b`` of several.
        by_coordinate: whether there is one value for each coordinate of the latent.
        draws: what a term is averaged over.
        is_global: whether all data share the latent.
        how: of each latent, in words.
    """

    def __init__(self, look: Look, particles: int) -> None:
        with torch.no_grad(), looking(look.program):
            model = model_sites(look.program, look.x, values_of(look.guide))
        prior = latents_of(model)
        both = {n: (s, prior[n]) for n, s in look.latents.items() if n in prior}
        closed = closed_kl(look.guide, model)
        alone = len(look.latents) == 1
        self.names = {name: "kl" if len(both) == 1 else f"kl_{name}" for name in both}
        self.is_global = {name: q.is_global for name, (q, _) in both.items()}
        self.by_coordinate = {n: _laws(*pair) is not None for n, pair in both.items()}
        exact = {name: closed.get(name) is not None for name in both}
        self.draws = 1 if alone and all(exact.values()) else min(particles, MOST_DRAWS)
        mean = f"averaged over {self.draws} draws of the latents before it"
        self.how = {
            name: ("closed form" if self.draws == 1 else f"closed form, {mean}")
            if exact[name]
            else f"Monte Carlo over {self.draws} draws"
            for name in both
        }

    def of_size(self, size: int) -> Callable[[Any, Rows], dict[str, Tensor]]:
        """A function of rows, the mean of ``size`` draws: (B, ...) by latent."""

        def terms(program: Any, rows: Rows) -> dict[str, Tensor]:
            many = repeated(rows, size) if size > 1 else rows
            guide = sites_of(program, "guide", many)
            model = model_sites(program, many, values_of(guide))
            closed = closed_kl(guide, model)
            found = {}
            for name in self.names:
                value = _term(guide[name], model[name], closed.get(name), self.by_coordinate[name])
                if not guide[name].is_global:
                    value = value.reshape(size, num_rows(rows), *value.shape[1:]).double().mean(0)
                found[name] = value.double()
            return found

        return terms


def _laws(q: Site, p: Site) -> tuple[Any, Any] | None:
    """The laws of single coordinates, where those of both are independent of each other."""
    if q.is_masked or p.is_masked or q.event_shape != p.event_shape or q.is_global != p.is_global:
        return None
    laws = []
    for law in (q.law, p.law):
        while type(law).__name__ == "Independent":
            law = law.base_dist
        if tuple(law.event_shape):
            return None
        laws.append(law)
    if torch.broadcast_shapes(q.law.batch_shape, p.law.batch_shape) != q.law.batch_shape:
        return None  # the prior has values of a latent beside it, which are summed out
    return laws[0], laws[1]


def _term(q: Site, p: Site, closed: Tensor | None, by_coordinate: bool) -> Tensor:
    pair = _laws(q, p) if by_coordinate else None
    if pair is None:
        return q.per_datum() - p.per_datum() if closed is None else closed
    if closed is not None:
        value = kl_divergence(*pair)
    else:
        value = pair[0].log_prob(q.value) - pair[1].log_prob(q.value)
    return q.rows_first(value.expand(q.value.shape))


def kl_batches(
    program: Any,
    terms: Terms,
    x: Rows,
    key: tuple[int, ...],
    batch_size: int,
    *,
    alone: bool,
    first: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """The KL terms of a batch of rows after the other, (B, ...) by latent.

    Args:
        program: the program.
        terms: which there are.
        x: the rows.
        key: of the noise.
        batch_size: rows at a time.
        alone: one draw at a time, because rows share latents.
        first: the number of the first batch.
    """
    batch_size, size = pieces(x, terms.draws, batch_size, first=first)
    if alone or not takes_repeated(program, next(row_chunks(x, batch_size))[1]):
        size = 1
    functions: dict[int, RowFunction] = {}
    for number, count, rows in numbered(x, batch_size, first):
        total: dict[str, np.ndarray] = {}
        for part, start in enumerate(range(0, terms.draws, size)):
            now = min(size, terms.draws - start)
            if now not in functions:
                functions[now] = RowFunction(program, terms.of_size(now))
            for name, value in functions[now](rows, *key, number, part).items():
                mine = as_array(value if terms.is_global[name] else value[:count])
                total[name] = total.get(name, 0.0) + mine * (now / terms.draws)
        yield total
