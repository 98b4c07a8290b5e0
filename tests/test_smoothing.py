"""Pareto-smoothed weights against ArviZ's."""

import numpy as np
import pytest
import torch

from pyro_vae.evidence.smoothing import pareto_smoothed


@pytest.fixture
def log_w():
    scales = torch.tensor([0.3, 1.0, 2.0, 4.0], dtype=torch.float64)
    return torch.randn(2000, 4, dtype=torch.float64) * scales


def psislw(log_w):
    """ArviZ's.  It takes log weights in 0.23, and their negatives, as log likelihoods, from 1.0."""
    az = pytest.importorskip("arviz")
    sign = 1 if int(az.__version__.split(".")[0]) < 1 else -1
    if not hasattr(az, "psislw"):
        pytest.skip("this ArviZ has no psislw of arrays")
    smoothed, khat = zip(*(az.psislw(sign * column.numpy()) for column in log_w.T), strict=True)
    return np.stack(smoothed, 1), np.array([float(k) for k in khat])


def test_smoothed_weights_are_arviz_own(log_w):
    smoothed, khat = pareto_smoothed(log_w)
    theirs, their_khat = psislw(log_w)

    np.testing.assert_allclose(khat.numpy(), their_khat, rtol=1e-9)
    np.testing.assert_allclose(smoothed.exp().numpy(), np.exp(theirs), rtol=1e-9)


def test_weights_of_the_other_sign_are_not(log_w):
    """The mutant that a change of ArviZ's convention would make of either."""
    _, khat = pareto_smoothed(-log_w)
    assert np.abs(khat.numpy() - psislw(log_w)[1]).min() > 1e-3


def test_no_smoothed_weight_exceeds_the_largest_and_their_order_stays(log_w):
    smoothed, _ = pareto_smoothed(log_w)

    torch.testing.assert_close(smoothed.logsumexp(0), torch.zeros(4, dtype=torch.float64))
    smoothed, log_w = smoothed - smoothed.median(0).values, log_w - log_w.median(0).values
    assert (smoothed.amax(0) <= log_w.amax(0) + 1e-9).all()
    assert (smoothed.gather(0, log_w.argsort(0)).diff(dim=0) >= 0).all()


def test_constant_and_tied_weights_are_left_alone():
    constant = torch.full((200, 1), -3.0, dtype=torch.float64)
    tied = torch.where(torch.arange(200) % 2 == 0, 0.0, -1.0).double().unsqueeze(-1)
    for log_w in (constant, tied):
        smoothed, _ = pareto_smoothed(log_w)
        torch.testing.assert_close(smoothed, log_w - log_w.logsumexp(0))
