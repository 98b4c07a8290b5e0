"""Monte Carlo EM: it climbs the exact evidence, and touches nothing but the model."""

import pyro
import pytest
import torch
from pyro.infer import SVI

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae, linear_gaussian
from pyro_vae.objectives import MonteCarloEM


def ppca_log_likelihood(x: torch.Tensor, latent_dim: int) -> float:
    """Tipping & Bishop (1999), eq. (4) at the maximum: nats per datum.

    C = W W' + s2 I has the top eigenvalues of the sample covariance, and s2, the mean of the rest,
    in all other directions; so the quadratic form is D.
    """
    n, dim = x.shape
    centred = x - x.mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred / n).flip(0)
    rest = values[latent_dim:].mean()
    log_det = values[:latent_dim].log().sum() + (dim - latent_dim) * rest.log()
    return float(-0.5 * (dim * torch.log(torch.tensor(2 * torch.pi)) + log_det + dim))


def truth(n=400):
    torch.manual_seed(3)
    program = linear_gaussian.build(5, latent_dim=2, weight=torch.randn(5, 2)).double()
    return program, pv.datasets.synthetic(program, n, like=torch.zeros(1, 5), seed=1).x.double()


def test_it_reaches_the_maximum_likelihood_of_ppca():
    """Fact 37, within 0.05 nats per datum, from a random start."""
    _, x = truth()
    torch.manual_seed(0)
    program = linear_gaussian.build(5, latent_dim=2).double()
    best = ppca_log_likelihood(x, 2)
    assert float(program.log_evidence(x).detach().mean()) < best - 0.5
    pv.fit(
        program, x, MonteCarloEM(), steps=400, batch_size=400, lr=0.03,
        optimizer=torch.optim.Adam,
        schedule=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 400),
    )  # fmt: skip
    reached = float(program.log_evidence(x).detach().mean())
    assert best - 0.05 < reached <= best + 1e-9


def test_its_chains_are_draws_of_the_posterior_and_its_acceptance_is_what_was_asked():
    """The model held still: chains of 400 data have the posterior's mean and spread."""
    program, x = truth()
    run = pv.fit(
        program, x, MonteCarloEM(updates_per_sample=1), steps=200, batch_size=400, lr=1e-12,
        optimizer=torch.optim.SGD,
    )  # fmt: skip
    exact = program.posterior(x)
    standard = torch.linalg.solve_triangular(
        exact.scale_tril, (run.state.rows["z"] - exact.mean).unsqueeze(-1), upper=False
    ).squeeze(-1)  # (400, 2), standard normal if the chains are right
    standard = standard.detach()
    assert float(standard.mean(0).abs().max()) < 4.5 / 20
    assert float((standard.var(0) - 1).abs().max()) < 4.5 * (2 / 400) ** 0.5
    assert float(run.history.accept.iloc[-50:].mean()) == pytest.approx(0.9, abs=0.03)


def test_the_guide_is_not_used_and_not_moved():
    torch.manual_seed(0)
    vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=8, init_std=None)
    before = {n: p.detach().clone() for n, p in vae.named_parameters()}
    x = (torch.rand(50, 6) < 0.4).float()
    run = pv.fit(vae, x, MonteCarloEM(), steps=20, batch_size=20)
    for name, parameter in vae.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == name.startswith("likelihood"), name
    assert "bound" not in run.history and run.state.rows["z"].shape == (50, 2)


def test_a_minibatch_is_kept_for_its_updates_and_then_moves_once():
    """20 updates at 5 each are 4 moves of 20 rows; the count of leapfrogs follows."""
    vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=8)
    x = (torch.rand(100, 6) < 0.4).float()
    run = pv.fit(vae, x, MonteCarloEM(leapfrog_steps=3), steps=20, batch_size=20)
    assert run.manifest["samples"] == 400
    assert run.manifest["leapfrogs"] == 4 * 20 * 3


def test_a_cycle_that_has_begun_has_moved_its_rows():
    """7 updates at 5 each are 2 moves of 20 rows, the last batch of an epoch of 50 is one of 10."""
    x = (torch.rand(50, 6) < 0.4).float()
    for steps, rows in ((7, 40), (11, 50), (16, 70)):
        vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=8)
        run = pv.fit(vae, x, MonteCarloEM(3), steps=steps, batch_size=20, engine="pyro")
        assert run.manifest["leapfrogs"] == rows * 3, steps


def test_what_it_cannot_do_is_refused(oracle, x):
    """Rows that see one another under batch normalization; a bound that there is not."""
    bits = (torch.rand(30, 6) < 0.4).float()
    normalized = bernoulli_vae.build(6, latent_dim=2, hidden_dim=8)
    normalized.likelihood.network.insert(1, torch.nn.BatchNorm1d(8))
    with pytest.raises(ValueError, match="rows that are independent of each other"):
        pv.fit(normalized, bits, MonteCarloEM(), steps=1)
    normalized.likelihood.network[1].eval()
    MonteCarloEM().init(normalized, bits)

    with pytest.raises(ValueError, match="early_stopping watches the held-out bound"):
        pv.fit(oracle, x, MonteCarloEM(), steps=5, validation=x, early_stopping=2)


def test_engines_agree():
    ends = []
    x = (torch.rand(48, 6) < 0.4).double()
    for engine in ("eager", "pyro"):
        torch.manual_seed(0)
        vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=8, init_std=None).double()
        run = pv.fit(vae, x, MonteCarloEM(2), steps=12, batch_size=16, engine=engine)
        ends.append((vae.likelihood.network[0].weight.detach(), run.state.rows["z"]))
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_it_works_in_pyros_svi_on_the_same_rows_and_refuses_others():
    torch.manual_seed(0)
    vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=8)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.05}), loss=MonteCarloEM(3))
    x = (torch.rand(30, 6) < 0.2).float()
    losses = [svi.step(x) for _ in range(60)]
    assert losses[-1] < losses[0] - 5
    with pytest.raises(ValueError, match=r"pass the same rows, or use pv.fit"):
        svi.step(x[:10])


@pytest.mark.parametrize(
    "options",
    [{"leapfrog_steps": 0}, {"target_accept": 1.0}, {"updates_per_sample": 1.5}, {"rate": 0.0}],
)
def test_impossible_options_are_refused_by_name(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        MonteCarloEM(**options)
