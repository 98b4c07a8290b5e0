"""Simulation-based calibration as findings: is the guide the posterior of data like the model's?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pyro_vae.calibration import Ranks, Uniformity, uniformity
from pyro_vae.calibration.ranks import DENSITIES
from pyro_vae.calibration.uniformity import holm
from pyro_vae.diagnostics.findings import Finding, named

ROUNDING = 1e6  # a z-score beyond which the sd of the draws is that of float32's last digit


@dataclass(frozen=True)
class Calibration:
    """Ranks of simulated truths among the guide's draws, and what they say.

    Attributes:
        ranks: of each quantity.
        level: the probability that a guide which is the posterior is called "bad".
    """

    ranks: Ranks
    level: float

    @cached_property
    def tests(self) -> dict[str, Uniformity]:
        """Tests of each quantity."""
        return {n: uniformity(r, self.ranks.num_draws) for n, r in self.ranks.ranks.items()}

    @cached_property
    def p_values(self) -> dict[str, float]:
        """The smallest of the three p-values of each quantity, adjusted for all of them (Holm)."""
        each = np.array([test[2:] for test in self.tests.values()])
        smallest = holm(each.ravel()).reshape(each.shape).min(1)
        return dict(zip(self.tests, smallest.tolist(), strict=True))

    @cached_property
    def z_scores(self) -> dict[str, np.ndarray]:
        """(truth - the draws' mean) / their standard deviation, (N,) each; nan where that is 0.

        (Or rounding is all there is of it, as of a guide that is a point.)
        """
        r = self.ranks
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = {n: (r.truth[n] - r.mean[n]) / r.sd[n] for n in r.ranks}
        return {n: np.where(np.abs(score) < ROUNDING, score, np.nan) for n, score in scores.items()}

    def scatter(self, name: str) -> float:
        """The standard deviation of the z-scores: what the guide's own should be multiplied by.

        Less what the noise of L draws adds to it.
        """
        if np.isnan(self.z_scores[name]).all():
            return float("nan")
        draws = self.ranks.num_draws
        noise = (1 + 1 / draws) * (draws - 1) / (draws - 3) if draws > 3 else 1.0
        scores = self.z_scores[name]
        if np.isnan(scores).all():  # draws that are all one value
            return float("nan")
        return float(np.nanstd(scores) / noise**0.5)

    @cached_property
    def contraction(self) -> dict[str, float]:
        """1 - mean posterior variance / prior variance of each coordinate of a latent.

        1: the datum says all; 0: it says nothing.  (Of the guide's draws and of the truths.)
        """
        r = self.ranks
        return {
            name: float(1 - np.square(r.sd[name]).mean() / variance)
            if (variance := r.truth[name].var())
            else float("nan")
            for name in r.ranks
            if r.is_latent[name]
        }

    @cached_property
    def failed(self) -> list[str]:
        """The quantities whose ranks are not uniform, the worst first."""
        bad = [name for name, p in self.p_values.items() if p < self.level]
        tests = self.tests
        return sorted(bad, key=lambda n: -max(abs(tests[n].location), abs(tests[n].spread)))

    def findings(self) -> list[Finding]:
        """The verdict, and which quantities fail in what way."""
        r = self.ranks
        number = len(next(iter(r.ranks.values())))
        what = f"{number:,} simulated data, {r.num_draws} draws of the guide each"
        coverage = r.coverage(0.9)
        latents = [name for name in r.ranks if r.is_latent[name]]
        shares = [coverage[name] for name in latents]
        covered = f"90 % intervals cover {min(shares):.1%}"
        if max(shares) > min(shares):
            covered += f" to {max(shares):.1%}"
        if not self.failed:
            text = (
                f"Nothing against the guide: the ranks of {len(r.ranks)} quantities are uniform "
                f"(smallest adjusted p {min(self.p_values.values()):.2g}; {what}); {covered}."
            )
            return [Finding("calibration", "good", text, self.level)]
        ways: dict[str, list[str]] = {}
        for name in self.failed:
            ways.setdefault(self._way(name), []).append(name)
        told = "; ".join(f"{way} ({self._sized(names)})" for way, names in ways.items())
        text = (
            f"The guide is not the posterior: {told}. {len(self.failed)} of {len(r.ranks)} "
            f"quantities fail ({what}); {covered}."
        )
        return [Finding("calibration", "bad", text, self.level)]

    def _way(self, name: str) -> str:
        """In what way a quantity is off, in words."""
        test = self.tests[name]
        if name in DENSITIES:
            of = "x given z" if name == DENSITIES[0] else "x and z"
            if test.p_location > self.level:
                return f"log p of {of} scatters otherwise at the truth than at the guide's draws"
            side = "higher" if test.location > 0 else "lower"
            return f"log p of {of} is {side} at the truth than at the guide's draws"
        if not self.ranks.is_latent[name]:
            return "a quantity of yours has another law at the truth"
        if abs(test.location) >= abs(test.spread) and test.p_location < self.level:
            return f"draws too {'low' if test.location > 0 else 'high'}"
        if test.p_spread < self.level:
            return "too narrow, overconfident" if test.spread > 0 else "too wide, underconfident"
        return "right in place and width but of another shape"

    def _sized(self, names: list[str]) -> str:
        """The quantities that go wrong in one way, with the size of the worst."""
        test, name = self.tests[names[0]], names[0]
        if not self.ranks.is_latent[name] or np.isnan(self.z_scores[name]).all():
            return named(names, 4)
        if abs(test.location) >= abs(test.spread):
            size = f"off by {abs(float(np.nanmean(self.z_scores[name]))):.2f} posterior sd"
        else:
            size = f"the truth scatters {self.scatter(name):.2f} times as far as the guide says"
        return f"{named(names, 4)}; {name}: {size}"
