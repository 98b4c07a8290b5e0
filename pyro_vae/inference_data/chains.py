"""What one program draws, a batch of rows after the other."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from pyro_vae.inference_data.draws import Groups, drawn, posterior_groups, predictions, prior_groups
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
from pyro_vae.program.rows import Rows


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
    """

    draws: Groups
    kl: dict[str, np.ndarray]
    joint: dict[str, Any]


class Chain:
    """One program's draws; the noise of the first of several is what it would be alone.

    Attributes:
        given: draws of the latents that all data share.
        given_prior: the same of the prior.
    """

    def __init__(self, plan: Plan, rows: Rows, number: int, sizes: Sizes) -> None:
        self.plan, self.rows, self.number, self.sizes = plan, rows, number, sizes
        seed = sizes.seed
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
            self._guide = from_guide(list(plan.observed), sizes.predictive, self._cast)
            self._prior = from_prior(sizes.predictive, self._cast)
            size = sizes.batch_size
            both = zip(
                (self._guide, self._prior), (sizes.particles, sizes.num_prior), self._keys,
                strict=True,
            )  # fmt: skip
            self.given, self.given_prior = (
                shared_draws(plan.program, rows, draw, count, key, size)
                for (draw, _), count, key in both
            )

    def shared(self) -> Groups:
        """The draws of what all data share, by group, (K, ...)."""
        if not self.plan.shared:
            return {}
        found: Groups = {"posterior": as_draws(self.given, self.plan.shared)}
        if self.given_prior:
            found["prior"] = as_draws(self.given_prior, self.plan.shared)
        return found

    def batches(self) -> Iterator[Batch]:
        """What each batch of rows has."""
        plan, sizes = self.plan, self.sizes
        key = Stream.KL_TERMS.key(sizes.seed, self.number)
        kl = kl_batches(
            plan.program, plan.terms, self.rows, key, sizes.batch_size, alone=bool(plan.shared)
        )
        prior = self._prior_batches() if sizes.num_prior else None
        for groups in self._posterior_batches():
            if prior is not None:
                groups |= next(prior)
            joint = groups.pop(JOINT, {})
            yield Batch(groups, next(kl), joint)

    def predictions(self, x: Rows) -> Iterator[Groups]:
        """Latents of other rows, and x drawn at them."""
        key = Stream.PREDICTIONS.key(self.sizes.seed, self.number)
        program, size = self.plan.program, self.sizes.batch_size
        if self.plan.shared:
            return drawn_together(program, x, predictions_at(self._cast), self.given, key, size)
        return drawn(program, x, predictions(self._cast), self.sizes.particles, key, size)

    def _posterior_batches(self) -> Iterator[Groups]:
        plan, sizes, key = self.plan, self.sizes, self._keys[0]
        if plan.shared:
            return drawn_together(
                plan.program, self.rows, self._guide[1], self.given, key, sizes.batch_size
            )
        of_size = posterior_groups(list(plan.observed), sizes.predictive, self._cast)
        return drawn(plan.program, self.rows, of_size, sizes.particles, key, sizes.batch_size)

    def _prior_batches(self) -> Iterator[Groups]:
        plan, sizes, key = self.plan, self.sizes, self._keys[1]
        if plan.shared:
            return drawn_together(
                plan.program, self.rows, self._prior[1], self.given_prior, key, sizes.batch_size
            )
        of_size = prior_groups(sizes.predictive, self._cast)
        return drawn(plan.program, self.rows, of_size, sizes.num_prior, key, sizes.batch_size)
