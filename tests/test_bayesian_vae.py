"""Full variational Bayes: equations (14), (21), (22) and (24) on models/bayesian_vae.py."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae import evaluation, likelihoods
from pyro_vae.densities.particles import densities
from pyro_vae.models import bayesian_vae, bernoulli_vae
from pyro_vae.noise import NoiseMode, keyed
from pyro_vae.objectives import AEVB
from pyro_vae.program.base import Program

from .bayesian import F64, MUTANTS, draws_of, kl_to_standard, log_normal
from .oracles import assert_equal, fed, parameter_gradients

PYRO = {"A": Trace_ELBO, "B": TraceMeanField_ELBO}


# --- the model of models/bayesian_vae.py ----------------------------------------------------------

N, D, J, H = 8, 4, 2, 3


def small(num_data=N, **options):
    """A program in float64 with random parameters."""
    options = {"latent_dim": J, "hidden_dim": H, "init_std": 0.5, **options}
    return bayesian_vae.build(D, num_data=num_data, **options).double()


@pytest.fixture
def rows():
    return torch.bernoulli(torch.full((N, D), 0.4, dtype=F64))


def f_by_hand(program, x, zeta, eps, estimator):
    """Equation (21), or the summand of (24), of each row: theta = m + s zeta, z = mu + sigma eps.

    zeta: one vector for each weight, in the order of the sites; eps (B, J).  Returns (B,).
    """
    value = dict(program.named_parameters())
    theta, means, stds = {}, [], []
    for name, noise in zip(("0/bias", "0/weight", "2/bias", "2/weight"), zeta, strict=True):
        mean = value[f"likelihood.network.{name.replace('/', '.')}"]
        std = (value[f"log_variance.network/{name}"].exp() + 1e-4**2).sqrt()
        theta[name] = mean + std * noise.reshape(mean.shape)
        means, stds = [*means, mean.flatten()], [*stds, std.flatten()]
    m, s, t = torch.cat(means), torch.cat(stds), torch.cat([v.flatten() for v in theta.values()])
    hidden = (x @ value["posterior.network.0.weight"].T + value["posterior.network.0.bias"]).tanh()
    heads = hidden @ value["posterior.network.2.weight"].T + value["posterior.network.2.bias"]
    mu, sigma = heads[:, :J], (heads[:, J:].exp() + 1e-4**2).sqrt()
    z = mu + sigma * eps
    # (11): y = sigmoid(W2 tanh(W1 z + b1) + b2)
    y = ((z @ theta["0/weight"].T + theta["0/bias"]).tanh() @ theta["2/weight"].T).add(
        theta["2/bias"]
    ).sigmoid()  # fmt: skip
    fit = (x * y.log() + (1 - x) * (1 - y).log()).sum(-1)
    zero, one = torch.zeros((), dtype=F64), torch.ones((), dtype=F64)
    if estimator == "B":
        return program.num_data * (fit - kl_to_standard(mu, sigma)) - kl_to_standard(m, s)
    local = fit + log_normal(z, zero, one) - log_normal(z, mu, sigma)
    return program.num_data * local + log_normal(t, zero, one) - log_normal(t, m, s)


def noise_for(program, batch, seed=1):
    """zeta by site, then eps (B, J)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(H,), (H, J), (D,), (D, H)]
    zeta = [torch.randn(size, dtype=F64, generator=generator) for size in sizes]
    return zeta, torch.randn(batch, J, dtype=F64, generator=generator)


def loss_at(program, objective, x, zeta, eps):
    """The loss of all N data as SVI sees it."""
    with fed(*zeta, eps):
        return objective.differentiable_loss(program.model, program.guide, x)


@pytest.mark.parametrize("batch", [1, 3, N])
@pytest.mark.parametrize("estimator", ["A", "B"])
def test_the_loss_is_the_mean_of_equation_21_or_24_over_the_minibatch(rows, estimator, batch):
    """A is (21) and (22), B is (24), loss and gradient by hand at fixed noise."""
    program, x = small(), rows[:batch]
    zeta, eps = noise_for(program, batch)
    expected = -f_by_hand(program, x, zeta, eps, estimator).mean()

    got = loss_at(program, AEVB(estimator), x, zeta, eps)

    assert_equal({"loss": got}, {"loss": expected})
    assert_equal(parameter_gradients(got, program), parameter_gradients(expected, program))


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("estimator", ["A", "B"])
def test_a_wrong_scale_is_not_equation_21_or_24(rows, estimator, mutant):
    program, x = small(), rows[:3]
    zeta, eps = noise_for(program, 3)
    expected = parameter_gradients(-f_by_hand(program, x, zeta, eps, estimator).mean(), program)

    class Fed(mutant):  # its own look at the densities sees the same noise
        def terms(self, program, x, state):
            with NoiseMode(lambda index, asked: [*zeta, eps][index % 5].reshape(asked.shape)):
                return super().terms(program, x, state)

    loss = Fed(estimator).differentiable_loss(program.model, program.guide, x)

    got = parameter_gradients(loss, program)
    assert all(g.isfinite().all() for g in got.values())
    with pytest.raises(AssertionError):
        assert_equal(got, expected, tolerance=1e-3)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("estimator", ["A", "B"])
def test_algorithm_2_averaged_over_all_data_is_the_full_gradient(rows, estimator, size):
    """At one theta and a fixed eps for each datum; the last batch of three has two rows."""
    program = small()
    zeta, eps = noise_for(program, N)
    full = loss_at(program, AEVB(estimator), rows, zeta, eps)
    expected = parameter_gradients(full, program)

    total = {name: torch.zeros_like(g) for name, g in expected.items()}
    for start in range(0, N, size):
        x, e = rows[start : start + size], eps[start : start + size]
        part = loss_at(program, AEVB(estimator), x, zeta, e)
        for name, gradient in parameter_gradients(part, program).items():
            total[name] += len(x) / N * gradient

    assert_equal(total, expected, tolerance=1e-10)


def test_equation_24_has_less_variance_than_22_where_training_starts(rows):
    """The typical case: as built, guides near their priors' means and far from the posterior's."""
    torch.manual_seed(0)
    program = small(init_std=0.01)
    draws = {e: draws_of(program, AEVB(e), rows, 1000) for e in "AB"}

    values = {e: float(loss.var()) for e, (loss, _) in draws.items()}
    slopes = {e: sum(float(g.var(0).sum()) for g in draws[e][1].values()) for e in draws}

    assert values["B"] < 0.1 * values["A"]
    assert slopes["B"] < 0.5 * slopes["A"]


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_pyros_elbos_give_the_same_loss_and_gradients_step_by_step(rows, estimator):
    """Trace_ELBO is A and TraceMeanField_ELBO is B, in SVI, at the same noise for three steps."""
    start, found = small(), []
    for loss in (PYRO[estimator](), AEVB(estimator)):
        program = copy.deepcopy(start)
        svi = SVI(program.model, program.guide, pyro.optim.SGD({"lr": 1e-3}), loss=loss)
        losses = []
        for step in range(3):
            with NoiseMode(keyed(4, step)):
                losses.append(svi.step(rows[3 * step : 3 * step + 3]))  # the last has two rows
        found.append(dict(program.named_parameters()) | {"loss": torch.tensor(losses, dtype=F64)})

    assert_equal(found[0], found[1])
    assert not torch.equal(found[0]["likelihood.network.0.bias"], start.likelihood.network[0].bias)


def test_fit_captures_it_and_pads_the_last_short_batch(rows):
    """Batches of 3, 3 and 2 rows: the captured step ends where Pyro's SVI does."""
    start, runs = small(), {}
    for name in ("eager", "pyro"):
        program = copy.deepcopy(start)
        runs[name] = pv.fit(program, rows, steps=7, batch_size=3, seed=2, engine=name)

    assert runs["eager"].manifest["engine"] == "eager"
    assert not runs["eager"].manifest["engine_reason"]
    captured, reference = (dict(runs[name].program.named_parameters()) for name in runs)
    assert_equal(captured, reference)
    columns = ["loss", "bound", "reconstruction", "kl.z"]
    histories = (torch.tensor(run.history[columns].to_numpy()) for run in runs.values())
    torch.testing.assert_close(*histories, rtol=1e-8, atol=1e-8)
    assert not torch.equal(captured["likelihood.network.0.bias"], start.likelihood.network[0].bias)


@pytest.mark.slow
def test_the_compiled_step_is_the_captured_one(rows):
    start, ends = small(), []
    for name in ("compiled", "eager"):
        program = copy.deepcopy(start)
        run = pv.fit(program, rows, steps=7, batch_size=3, seed=2, engine=name)
        assert (run.manifest["engine"], run.manifest["engine_reason"]) == (name, "")
        ends.append(dict(program.named_parameters()))
    assert_equal(*ends)


def test_training_raises_the_bound_and_widens_the_weights():
    """N is small, so the data say little about most weights: their spread s grows from 0.05."""
    torch.manual_seed(0)
    x = torch.zeros(40, D)
    x[::2] = 1.0
    program = bayesian_vae.build(D, num_data=40, latent_dim=2, hidden_dim=6)
    before = pv.elbo(program, x, num_particles=10).mean()

    pv.fit(program, x, steps=300, batch_size=40, optimizer=torch.optim.Adam, lr=0.03, seed=1,
           engine="eager")  # fmt: skip

    after = pv.elbo(program, x, num_particles=10).mean()
    assert after > before + 1
    assert all(std.detach().median() > 0.3 for _, std in program._moments().values())


def test_check_names_the_weights_as_global_latents(rows):
    report = pv.check(small(num_data=20), rows)

    kinds = {site.name: site.kind for site in report.sites}
    weights = {f"likelihood.network.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    assert kinds == dict.fromkeys(weights, "global") | {"z": "latent", "x": "observed"}
    assert not report.sampled_kl
    assert report.scale == 20 / N


def test_fit_refuses_a_plate_of_another_number_of_data(rows):
    said = rf'"likelihood.network.0.bias" is shared by all data.* counts 20 where there are {N}'
    with pytest.raises(ValueError, match=said):
        pv.fit(small(num_data=20), rows, steps=1)

    class Uncounted(Program):  # pyro.plate("data", len(x)): a minibatch would be all there is
        def __init__(self):
            super().__init__()
            self.mean = nn.Parameter(torch.zeros((), dtype=F64))

        def model(self, x):
            m = pyro.sample("m", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(m, 1.0).expand(x.shape).to_event(1), obs=x)

        def guide(self, x):
            pyro.sample("m", dist.Normal(self.mean, 1.0))

    pv.fit(Uncounted(), rows, steps=1, batch_size=N)
    with pytest.raises(ValueError, match=rf'"m" is shared .* counts 3 .* there are {N}: write'):
        pv.fit(Uncounted(), rows, steps=1, batch_size=3)


def test_codes_are_those_of_the_data_and_draws_have_learnt_weights(rows):
    program = small()
    with torch.no_grad():
        program.likelihood.network[2].bias.fill_(9.0)  # every pixel on; the prior knows nothing

    assert pv.encode(program, rows).shape == (N, J)
    assert pv.encode(program, rows, num_draws=2).shape == (2, N, J)
    with pytest.raises(ValueError, match=r"no latent outside .* pass shared=False"):
        pv.encode(bernoulli_vae.build(D).double(), rows, shared=True)
    assert pv.sample(program, 5, like=rows).mean() > 0.95
    assert pv.sample(program, 5, like=rows, mean=True).mean() > 0.95


def test_weights_without_spread_are_those_of_the_plain_vae(rows):
    """theta = m: the local terms, and reconstructions, are the Bernoulli VAE's."""
    program = small()
    plain = bernoulli_vae.build(D, latent_dim=J, hidden_dim=H).double()
    plain.likelihood.load_state_dict(program.likelihood.state_dict())
    plain.posterior.load_state_dict(program.posterior.state_dict())
    zeta, eps = noise_for(program, N)

    with fed(*[torch.zeros_like(z) for z in zeta], eps):
        got = densities(program, rows)
    with fed(eps):
        expected = densities(plain, rows)

    torch.testing.assert_close(got.log_w, expected.log_w)
    torch.testing.assert_close(pv.reconstruct(program, rows), pv.reconstruct(plain, rows))


def test_any_likelihood_has_its_parameters_turned_into_latents(rows):
    """Swapping it is passing another object; what is frozen stays a constant."""
    likelihood = likelihoods.Gaussian(J, D, H)
    likelihood.network[0].bias.requires_grad_(False)
    program = small(likelihood=likelihood)

    report = pv.check(program, rows)

    found = {site.name for site in report.sites if site.kind == "global"}
    names = ("0.weight", "2.bias", "2.weight")
    assert found == {f"likelihood.network.{name}" for name in names}
    run = pv.fit(program, rows, AEVB("A"), steps=3, engine="eager")
    assert not run.manifest["engine_reason"]


def test_a_saved_run_is_loaded_by_name(rows, tmp_path):
    run = pv.fit(small(), rows, steps=3, engine="eager")
    run.save(tmp_path / "run")

    loaded = pv.load(tmp_path / "run").program

    assert loaded.num_data == N
    assert torch.equal(pv.elbo(loaded, rows), pv.elbo(run.program, rows))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_data": 0}, "num_data is 0, expected .* num_data=len"),
        ({"num_data": 2.5}, "num_data is 2.5"),
        ({"weight_std": 0.0}, "weight_std is 0.0, expected .*above the floor"),
        ({"likelihood": nn.Identity()}, "Identity has no parameter .* plain pv.VAE"),
    ],
)
def test_impossible_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        small(**options)


# --- what one does with it afterwards -------------------------------------------------------------


def test_elbo_counts_the_weights_once_over_all_data(rows):
    """The sum over the N data holds KL(q(theta) || p(theta)) once; held-out data have shares."""
    program = small()
    zeta, eps = noise_for(program, N)
    expected = f_by_hand(program, rows, zeta, eps, "B") / N

    with pytest.MonkeyPatch.context() as patch:
        source = lambda *_: lambda index, asked: [*zeta, eps][index].reshape(asked.shape)  # noqa: E731
        patch.setattr(evaluation, "keyed", source)
        got = pv.elbo(program, rows)

    torch.testing.assert_close(got, expected.detach(), rtol=1e-8, atol=1e-8)
    more = rows.repeat(3, 1)  # more rows than N, in chunks of more than N
    assert pv.elbo(program, more, batch_size=20).isfinite().all()


@pytest.mark.parametrize("proposal", ["guide", "hmc"])
def test_there_is_no_evidence_of_a_datum_where_weights_are_shared(rows, proposal):
    with pytest.raises(ValueError, match="all data share") as caught:
        pv.log_evidence(small(), rows, proposal=proposal, num_particles=2)
    assert "condition" in str(caught.value)


def test_draws_of_the_weights_are_shared_by_the_rows(rows):
    """Equal rows get equal reconstructions at equal z, whatever theta was drawn."""
    program = small(weight_std=0.5)
    assert pv.encode(program, rows, num_draws=3).shape == (3, N, J)
    weights = pv.encode(program, rows, num_draws=3, shared=True)
    assert weights["likelihood.network.2.weight"].shape == (3, D, H)
    assert pv.reconstruct(program, rows, num_draws=3).shape == (3, N, D)
    assert pv.reconstruct(program, rows).shape == (N, D)
    assert pv.sample(program, 2 * N).shape == (2 * N, D)
