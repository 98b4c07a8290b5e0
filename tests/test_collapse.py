"""A posterior that falls back on its prior is told at its step, and one that does not is not."""

import warnings

import pytest
import torch

import pyro_vae as pv
from pyro_vae.models import gaussian_vae
from pyro_vae.training.advice import Collapse


def looks(seen, *values, rows=100, start=1):
    for step, value in enumerate(values, start):
        seen.watch({"kl.z": value, "kl.w": 0.0, "bound": -1.0}, rows, step)


def test_a_fall_is_told_once_with_site_and_step():
    seen = Collapse()
    looks(seen, *[0.1] * 60, 3.0, 0.2, 0.003)
    with pytest.warns(pv.PyroVaeWarning, match=r'step 64: .*site "z".*0.002 .*was 3 at step 61'):
        looks(seen, 0.002, start=64)
    looks(seen, *[0.001] * 100, start=65)


def test_a_guide_that_has_never_said_anything_has_not_fallen():
    looks(Collapse(), *[0.001 * step for step in range(300)])


def test_a_guide_that_comes_near_the_prior_before_it_learns_has_not_fallen():
    looks(Collapse(), 3.0, *[0.001] * 40, *[2.0] * 10)


def test_single_rows_and_single_looks_are_not_enough():
    looks(Collapse(), *[0.1] * 60, 3.0, *[0.0, 3.0] * 50)
    seen = Collapse()
    looks(seen, *[2.0] * 200, rows=1)
    looks(seen, *[0.0, 0.0, 2.0] * 100, rows=1, start=201)


def test_a_run_that_goes_on_knows_what_it_was():
    seen = Collapse()
    seen.remember([{"step": 90, "kl.z": 2.5}, {"step": 100, "kl.z": 1.0}])
    with pytest.warns(pv.PyroVaeWarning, match="was 2.5 at step 90"):
        looks(seen, *[0.0] * 60, start=101)


class Heavier(pv.objectives.AEVB):
    """The KL term counts a thousand times."""

    def terms(self, program, x, state):
        loss, stats = super().terms(program, x, state)
        return loss + 1000 * sum(v for n, v in self._kl(program, x).items()), stats

    def _kl(self, program, x):
        from pyro_vae.densities import densities

        return densities(program, x, 1).kl_terms


def fitted(objective, program=None):
    torch.manual_seed(0)
    if program is None:
        program = gaussian_vae.build(
            3, latent_dim=1, hidden_dim=8, init_std=None, sigmoid_mean=False
        )
    x = torch.randn(200, 1) @ torch.tensor([[3.0, -3.0, 3.0]])
    return pv.fit(
        program, x, objective, steps=200, lr=0.02, optimizer=torch.optim.Adam, progress=False,
        engine="eager",
    )  # fmt: skip


def test_a_training_that_presses_the_kl_term_down_says_so():
    learnt = fitted(pv.objectives.AEVB()).program
    with pytest.warns(pv.PyroVaeWarning, match=r'step \d+: the posterior of site "z" fell back'):
        fitted(Heavier(), learnt)


def test_a_training_that_learns_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = fitted(pv.objectives.AEVB())
    assert run.history["kl.z"].iloc[-1] > 0.5
