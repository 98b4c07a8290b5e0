"""Where training ends, on the model whose optimum is known."""

import pytest
import torch

import pyro_vae as pv
from pyro_vae.models import linear_gaussian
from pyro_vae.objectives import AEVB

from .quickly import some_quickly


@pytest.mark.parametrize("estimator", some_quickly(["A", "B"], "B"))
def test_a_linear_guide_ends_at_the_evidence_minus_its_known_gap(estimator):
    """Fact 3: the best diagonal guide misses the evidence by (sum log L_jj - log det L) / 2.

    Decaying steps, the model fixed; the bound that is reached is computed in closed form.
    """
    torch.manual_seed(1)
    columns = 2 * torch.randn(5, 1).expand(5, 2) + 0.4 * torch.randn(5, 2)  # far from orthogonal
    program = linear_gaussian.build(5, latent_dim=2, posterior="diagonal", weight=columns).double()
    x = pv.datasets.synthetic(program, 500, like=torch.zeros(1, 5)).x.double()
    for name, parameter in program.named_parameters():
        parameter.requires_grad_(name.startswith("guide"))
    run = pv.fit(
        program, x, AEVB(estimator), steps=800, batch_size=100, lr=0.05,
        optimizer=torch.optim.Adam,
        schedule=lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 800),
    )  # fmt: skip
    reached = program.elbo(x).mean()
    best = program.log_evidence(x).mean() - program.diagonal_gap()
    assert float((best - reached).detach()) == pytest.approx(0.0, abs=0.01)
    assert float(program.diagonal_gap().detach()) > 0.3  # else a wrong optimum would pass as well
    assert run.history.bound.iloc[-1] == pytest.approx(float(best.detach()), abs=0.3)
