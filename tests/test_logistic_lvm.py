"""The logistic oracle: symmetry where it is exact, a fine grid where it is not."""

import itertools

import pytest
import torch
from torch.nn.functional import softplus

from pyro_vae.errors import PyroVaeWarning
from pyro_vae.models import logistic_lvm
from pyro_vae.objectives import AEVB
from pyro_vae.objectives.base import EMPTY


def corners(dim):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=dim)), dtype=torch.float64)


def on_a_grid(program, x, half_width=9.0, points=901):
    """p(z | x) times p(x) by the trapezium rule, which converges fast for smooth decaying tails."""
    latent_dim = program.weight.shape[1]
    axis = torch.linspace(-half_width, half_width, points, dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * latent_dim).reshape(-1, latent_dim)
    logits = z @ program.weight.T + program.bias
    log_lik = logits @ x.T - softplus(logits).sum(-1, keepdim=True)
    alpha = program.prior.precision
    log_prior = 0.5 * latent_dim * torch.log(torch.tensor(alpha / (2 * torch.pi)))
    log_prior = log_prior - 0.5 * alpha * z.square().sum(-1, keepdim=True)
    mass = (log_lik + log_prior).exp() * (axis[1] - axis[0]) ** latent_dim  # (M, B)
    return z, mass.detach()


@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("precision", [0.5, 3.0])
def test_one_observation_without_bias_has_probability_one_half(latent_dim, precision):
    """By the symmetry of z, for any w and alpha; so no ELBO exceeds -log 2."""
    for _ in range(5):
        program = logistic_lvm.build(1, latent_dim=latent_dim, prior_precision=precision).double()

        log_evidence = program.log_evidence(corners(1))

        assert (log_evidence.exp() - 0.5).abs().max() < 1e-10


def test_bound_of_one_observation_is_at_most_minus_log_two():
    """In the mean over the noise; one draw may lie above."""
    program = logistic_lvm.build(1).double()
    x = torch.ones(20_000, 1, dtype=torch.float64)

    loss, _ = AEVB().terms(program, x, EMPTY)

    bound = -loss.detach()
    assert bound.mean() + 4.5 * bound.std() / len(x) ** 0.5 < -torch.tensor(2.0).log()


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_probabilities_of_all_observations_sum_to_one(latent_dim):
    program = logistic_lvm.build(3, latent_dim=latent_dim, bias=torch.randn(3)).double()

    total = program.log_evidence(corners(3)).exp().sum()

    assert (total - 1).abs() < 1e-9


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_quadrature_agrees_with_a_fine_grid(latent_dim):
    program = logistic_lvm.build(3, latent_dim=latent_dim, prior_precision=1.5).double()
    x = corners(3)
    z, mass = on_a_grid(program, x)

    mean, covariance = program.posterior_moments(x, nodes=128)

    log_evidence = program.log_evidence(x, nodes=128)
    torch.testing.assert_close(log_evidence, mass.sum(0).log(), rtol=1e-7, atol=1e-7)
    weight = mass / mass.sum(0)
    expected = weight.T @ z
    torch.testing.assert_close(mean, expected, rtol=1e-7, atol=1e-7)
    second = torch.einsum("mb,mi,mj->bij", weight, z, z)
    expected = second - expected.unsqueeze(2) * expected.unsqueeze(1)
    torch.testing.assert_close(covariance, expected, rtol=1e-7, atol=1e-7)


def test_posterior_of_one_observation_differs_from_the_prior_along_w_alone():
    """Along w it is the one-dimensional posterior of weight |w|; across w it is the prior."""
    program = logistic_lvm.build(1, latent_dim=2, prior_precision=1.5).double()
    w = program.weight.detach()[0]
    along, across = w / w.norm(), torch.stack([-w[1], w[0]]) / w.norm()
    line = logistic_lvm.build(1, prior_precision=1.5, weight=w.norm().reshape(1, 1)).double()

    mean, covariance = program.posterior_moments(corners(1))

    line_mean, line_variance = line.posterior_moments(corners(1))
    torch.testing.assert_close(mean, line_mean * along, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(
        (covariance @ along) @ along, line_variance[:, 0, 0], rtol=1e-8, atol=1e-10
    )
    one = torch.full((2,), 1 / 1.5, dtype=torch.float64)
    torch.testing.assert_close((covariance @ across) @ across, one, rtol=1e-8, atol=1e-10)


def test_evidence_can_be_differentiated():
    """Fisher's identity: d log p(x) / db_d = x_d - E[sigmoid(w_d z + b_d) | x]."""
    program = logistic_lvm.build(3).double()
    x = corners(3)[5:6]
    z, mass = on_a_grid(program, x)

    (slope,) = torch.autograd.grad(program.log_evidence(x).sum(), program.bias)

    expected = x[0] - (mass / mass.sum()).T @ (z @ program.weight.T + program.bias).sigmoid()
    torch.testing.assert_close(slope, expected[0].detach(), rtol=1e-7, atol=1e-7)


def test_too_few_nodes_are_said():
    """A posterior much narrower than the prior slips between the nodes."""
    program = logistic_lvm.build(3, weight=torch.full((3, 1), 30.0))

    with pytest.warns(PyroVaeWarning, match="pass nodes=128"):
        program.log_evidence(torch.tensor([[1.0, 0.0, 1.0]]))


def test_three_latents_are_refused_with_what_to_use_instead():
    program = logistic_lvm.build(4, latent_dim=3)

    for answer in (program.log_evidence, program.posterior_moments):
        with pytest.raises(ValueError, match=r"3 latents.*pv\.log_evidence"):
            answer(torch.zeros(2, 4))


def test_wrong_options_name_what_is_expected():
    program = logistic_lvm.build(2)
    with pytest.raises(ValueError, match=r"weight has shape \(2, 2\), expected \(2, 1\)"):
        logistic_lvm.build(2, weight=torch.zeros(2, 2))
    with pytest.raises(ValueError, match="nodes is 0"):
        program.log_evidence(torch.zeros(1, 2), nodes=0)
