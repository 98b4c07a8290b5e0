"""A posterior that falls back on its prior is told at its step, and one that does not is not."""

import warnings

import pytest
import torch

import pyro_vae as pv
from pyro_vae.models import gaussian_vae
from pyro_vae.training.advice import Collapse


def test_a_fall_is_told_once_with_site_and_step():
    seen = Collapse()
    seen.watch({"kl.z": 3.0, "kl.w": 0.0, "bound": -1.0}, 1)
    seen.watch({"kl.z": 0.2, "kl.w": 0.001}, 2)
    with pytest.warns(pv.PyroVaeWarning, match=r'step 3: .*site "z".*0.003 .*was 3 at step 1'):
        seen.watch({"kl.z": 0.003, "kl.w": 0.0}, 3)
    seen.watch({"kl.z": 0.002}, 4)


def test_a_guide_that_has_never_left_the_prior_has_not_fallen():
    seen = Collapse()
    for step in range(5):
        seen.watch({"kl.z": 0.001 * step}, step)


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
