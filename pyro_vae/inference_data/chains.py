"""What one program draws, a batch of rows after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from pyro_vae.inference_data.draws import Groups, drawn, posterior_groups, predictions, prior_groups
from pyro_vae.inference_data.further import Refined
from pyro_vae.inference_data.judging import kl_batches
from pyro_vae.inference_data.programs import Plan, cast
from pyro_vae.inference_data.shared import (
    JOINT,
    Shared,
    as_draws,
    drawn_together,
    from_guide,
    from_prior,
    predictions_at,
    shared_draws,
)
from pyro_vae.noise import Stream
from pyro_vae.program.rows import Rows, rows_from


class Sizes(NamedTuple):
    """How much is drawn: of the guide, of the prior, rows at a time, and by which seed."""

    particles: int
    num_prior: int
    predictive: bool
    batch_size: int
    seed: int


class Batch(NamedTuple):
    """What a program has for a batch of rows.

    Attributes:
        draws: groups (K, B, ...).
        kl: KL terms by latent, (B, ...).
        joint: log densities of what all data share, (K,).
        refined: what is said of draws that are better than the guide's, (B,).
    """

    draws: Groups
    kl: Mapping[str, np.ndarray] = {}
    joint: Mapping[str, Any] = {}
    refined: Mapping[str, np.ndarray] = {}

    @property
    def size(self) -> int:
        """Rows."""
        values = self.draws.get("log_likelihood") or self.draws["predictions"]
        return next(iter(values.values())).shape[1]


class Chain:
    """One program's draws; the noise of the first of several is what it would be alone.

    It holds no rows, so that a worker on another machine can be given it with some of them.

    Attributes:
        given: draws of the latents that all data share.
        given_prior: the same of the prior.
    """

    def __init__(
        self, plan: Plan, rows: Rows, number: int, sizes: Sizes, refined: Refined | None = None
    ) -> None:
        self.refined = refined
        self.program, self.number, self.sizes = plan.program, number, sizes
        self._terms, self._shared = plan.terms, plan.shared
        seed, observed = sizes.seed, list(plan.observed)
        self._keys = [Stream.POSTERIOR.key(seed), Stream.PRIOR.key(seed)]
        if number:
            self._keys = [
                Stream.POSTERIOR_OF_RUNS.key(seed, number),
                Stream.PRIOR_OF_RUNS.key(seed, number),
            ]
        self._cast = partial(cast, types=plan.whole)
        self.given: list[Shared] = []
        self.given_prior: list[Shared] = []
        if plan.shared:
            first, self._posterior = from_guide(observed, sizes.predictive, self._cast)
            first_of_prior, self._prior = from_prior(sizes.predictive, self._cast)
            draw = partial(shared_draws, plan.program, rows, batch_size=sizes.batch_size)
            self.given = draw(first, sizes.particles, self._keys[0])
            self.given_prior = draw(first_of_prior, sizes.num_prior, self._keys[1])
        else:
            self._posterior = posterior_groups(observed, sizes.predictive, self._cast)
            self._prior = prior_groups(sizes.predictive, self._cast)

    def shared(self) -> Groups:
        """The draws of what all data share, by group, (K, ...)."""
        if not self._shared:
            return {}
        found: Groups = {"posterior": as_draws(self.given, self._shared)}
        if self.given_prior:
            found["prior"] = as_draws(self.given_prior, self._shared)
        return found

    def batches(self, x: Rows, start: int = 0) -> Iterator[Batch]:
        """What each batch of rows has; ``start`` is the number of the first of them."""
        sizes, (guide, prior), first = self.sizes, self._keys, self._number_of(start)
        kl = kl_batches(
            self.program, self._terms, x, Stream.KL_TERMS.key(sizes.seed, self.number),
            sizes.batch_size, alone=bool(self._shared), first=first,
        )  # fmt: skip
        drawings = [self._drawn(x, self._posterior, self.given, sizes.particles, guide, first)]
        if sizes.num_prior:
            drawings.append(
                self._drawn(x, self._prior, self.given_prior, sizes.num_prior, prior, first)
            )
        at = 0
        for terms, *groups in zip(kl, *drawings, strict=True):
            draws = {name: values for each in groups for name, values in each.items()}
            joint = draws.pop(JOINT, {})
            batch = Batch(draws, terms, joint)
            if self.refined is not None:
                rows = rows_from(x, at, batch.size)
                better, said = self.refined.draws(rows, start + at)
                batch = Batch(draws | better, terms, joint, said)
            at += batch.size
            yield batch

    def predictions(self, x: Rows, start: int = 0) -> Iterator[Batch]:
        """Latents of other rows, and x drawn at them."""
        key = Stream.PREDICTIONS.key(self.sizes.seed, self.number)
        what = predictions_at(self._cast) if self._shared else predictions(self._cast)
        first = self._number_of(start)
        for groups in self._drawn(x, what, self.given, self.sizes.particles, key, first):
            yield Batch(groups)

    def _number_of(self, start: int) -> int:
        """Of the batch that begins with this row."""
        return start // self.sizes.batch_size

    def _drawn(
        self,
        x: Rows,
        what: Any,
        given: list[Shared],
        particles: int,
        key: tuple[int, ...],
        first: int,
    ) -> Iterator[Groups]:
        size = self.sizes.batch_size
        if self._shared:
            return drawn_together(self.program, x, what, given, key, size, first)
        return drawn(self.program, x, what, particles, key, size, first=first)
