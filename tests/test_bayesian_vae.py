"""Full variational Bayes: equations (14), (21), (22) and (24), and a conjugate model as oracle."""

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from scipy import stats
from torch import nn

import pyro_vae as pv
from pyro_vae import engine, likelihoods
from pyro_vae.densities.particles import densities
from pyro_vae.models import bayesian_vae, bernoulli_vae
from pyro_vae.noise import NoiseMode, keyed
from pyro_vae.objectives import AEVB
from pyro_vae.program.base import Program

from .oracles import assert_equal, fed, parameter_gradients

F64 = torch.float64
PYRO = {"A": Trace_ELBO, "B": TraceMeanField_ELBO}


class ScaledTwice(AEVB):
    """A mutant: N / B in the loss of a datum, beside the one that the plate applies."""

    def terms(self, program, x, state):
        d = densities(program, x, self.num_particles)
        loss, stats = super().terms(program, x, state)
        share = d.global_share if self.estimator == "A" else -d.global_kl_share
        return d.scale * (loss + share) - share, stats


class SharedTermsPerDatum(AEVB):
    """A mutant: KL(q(theta) || p(theta)) is scaled by N / B, as if each datum had a theta."""

    def terms(self, program, x, state):
        d = densities(program, x, self.num_particles)
        loss, stats = super().terms(program, x, state)
        share = d.global_share if self.estimator == "A" else -d.global_kl_share
        return loss - (d.scale - 1) * share, stats


MUTANTS = (ScaledTwice, SharedTermsPerDatum)


def draws_of(program, objective, x, count, seed=0):
    """The loss and gradient of ``count`` steps of one datum, each with its own datum and theta.

    One ``vmap`` over the captured step: x (N, D); returns losses (count,) and name -> (count, ...).
    """
    graph = engine.capture(program, objective, x[:1])
    assert isinstance(graph, engine.Graph), str(graph)
    params = {name: p.detach() for name, p in program.named_parameters()}
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(x), (count,), generator=generator)
    noise = [n.draw(count, generator=generator) for n in graph.grads.noise]

    def step(row, noise):
        return graph.grads(params, row, torch.ones(1, dtype=F64), {}, {}, noise=noise)

    grads, sums = torch.func.vmap(step)(x[index].unsqueeze(1), noise)
    return sums["loss"], grads


# --- the model of models/bayesian_vae.py ----------------------------------------------------------

N, D, J, H = 8, 4, 2, 3


def small(num_data=N, **options):
    """A program in float64 with random parameters."""
    options = {"latent_dim": J, "hidden_dim": H, "init_std": 0.5, **options}
    return bayesian_vae.build(D, num_data=num_data, **options).double()


@pytest.fixture
def rows():
    return torch.bernoulli(torch.full((N, D), 0.4, dtype=F64))


def log_normal(value, mean, std):
    return (-0.5 * ((value - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def kl_to_standard(mean, std):
    """Appendix B and F.1: -1/2 sum (1 + log s^2 - m^2 - s^2)."""
    return -0.5 * (1 + 2 * std.log() - mean**2 - std**2).sum(-1)


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
        ({"weight_std": 0.0}, "weight_std is 0.0, expected a number above"),
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
        patch.setattr(engine, "keyed", source)
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


# --- the conjugate model: an exact log evidence ---------------------------------------------------


class KnownVarianceMean(Program):
    """mu ~ N(0, 1), x_n ~ N(mu, s^2), q(mu) = N(m, t^2): only a global latent."""

    def __init__(self, num_data, scale=0.8):
        super().__init__()
        self.num_data, self.scale = num_data, scale
        self.m = nn.Parameter(torch.tensor(0.3, dtype=F64))
        self.log_t = nn.Parameter(torch.tensor(-0.7, dtype=F64))

    def variance(self):
        """Of x_n given mu."""
        return self.scale**2

    def rows(self, x):
        return pyro.plate("data", self.num_data, subsample_size=len(x))

    def model(self, x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros_like(self.m), 1.0))
        with self.rows(x):
            pyro.sample("x", dist.Normal(mu.expand(len(x)), self.scale), obs=x)

    def guide(self, x):
        pyro.sample("mu", dist.Normal(self.m, self.log_t.exp()))

    def log_evidence(self, x):
        """log N(x; 0, v I + 1 1')."""
        n = len(x)
        covariance = self.variance() * np.eye(n) + np.ones((n, n))
        return stats.multivariate_normal(np.zeros(n), covariance).logpdf(x.numpy())

    def posterior(self, x):
        """Mean and standard deviation of p(mu | x)."""
        precision = 1 + len(x) / self.variance()
        return float(x.sum()) / self.variance() / precision, precision**-0.5

    def bound(self, x):
        """Equation (14): E_q log p(X | mu) - KL(q(mu) || p(mu))."""
        v, t2 = torch.tensor(self.variance(), dtype=F64), (2 * self.log_t).exp()
        misfit = ((x - self.m) ** 2).sum() + len(x) * t2
        fit = -0.5 * len(x) * (2 * math.pi * v).log() - 0.5 * misfit / v
        return fit + 0.5 * (1 + t2.log() - self.m**2 - t2)

    def f_by_hand(self, x, zeta, eps, estimator):
        """Equation (21), or the summand of (24), of each row."""
        mu = self.m + self.log_t.exp() * zeta
        fit = self.num_data * log_normal(x[:, None], mu, torch.tensor(self.scale, dtype=F64))
        return fit + self._shared(mu, estimator)

    def _shared(self, mu, estimator):
        t = self.log_t.exp()
        if estimator == "B":
            return -kl_to_standard(self.m[None], t[None])
        one = torch.ones((), dtype=F64)
        return log_normal(mu[None], 0.0, one) - log_normal(mu[None], self.m, t)


class KnownVarianceLocals(KnownVarianceMean):
    """mu ~ N(0, 1), z_n ~ N(mu, r^2), x_n ~ N(z_n, s^2), q(z | x, mu) = N(a x + b mu + c, v^2).

    Integrating z_n leaves the model above with variance r^2 + s^2; this guide holds the posterior.
    """

    spread = 0.6  # r

    def __init__(self, num_data):
        super().__init__(num_data)
        for name, value in {"a": 0.5, "b": 0.1, "c": 0.2, "log_v": -0.4}.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=F64)))

    def variance(self):
        return self.scale**2 + self.spread**2

    def model(self, x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros_like(self.m), 1.0))
        with self.rows(x):
            z = pyro.sample("z", dist.Normal(mu.expand(len(x)), self.spread))
            pyro.sample("x", dist.Normal(z, self.scale), obs=x)

    def guide(self, x):
        mu = pyro.sample("mu", dist.Normal(self.m, self.log_t.exp()))
        with self.rows(x):
            pyro.sample("z", dist.Normal(self.a * x + self.b * mu + self.c, self.log_v.exp()))

    @torch.no_grad()
    def make_locals_exact(self):
        """q(z | x, mu) = p(z | x, mu)."""
        like, prior = self.scale**-2, self.spread**-2
        self.a.fill_(like / (like + prior))
        self.b.fill_(prior / (like + prior))
        self.c.fill_(0.0)
        self.log_v.fill_(-0.5 * math.log(like + prior))

    def bound(self, x):
        """The ELBO: all of it is Gaussian."""
        s2, r2 = (torch.tensor(scale**2, dtype=F64) for scale in (self.scale, self.spread))
        t2, v2 = (2 * self.log_t).exp(), (2 * self.log_v).exp()
        to_x = ((1 - self.a) * x - self.b * self.m - self.c) ** 2 + self.b**2 * t2 + v2
        to_mu = (self.a * x + (self.b - 1) * self.m + self.c) ** 2 + (self.b - 1) ** 2 * t2 + v2
        logs = (2 * math.pi * s2).log() + r2.log() - v2.log() - 1
        local = -0.5 * (to_x / s2 + to_mu / r2 + logs).sum()
        return local + 0.5 * (1 + t2.log() - self.m**2 - t2)

    def f_by_hand(self, x, zeta, eps, estimator):
        scale, spread = (torch.tensor(s, dtype=F64) for s in (self.scale, self.spread))
        mu, v = self.m + self.log_t.exp() * zeta, self.log_v.exp()
        mean = self.a * x + self.b * mu + self.c
        z = mean + v * eps
        local = log_normal(x[:, None], z[:, None], scale)
        if estimator == "A":
            local = local + log_normal(z[:, None], mu, spread)
            local = local - log_normal(z[:, None], mean[:, None], v)
        else:  # KL(N(mean, v^2) || N(mu, r^2))
            ratio = (v / spread) ** 2
            local = local - 0.5 * (ratio + ((mean - mu) / spread) ** 2 - 1 - ratio.log())
        return self.num_data * local + self._shared(mu, estimator)


CONJUGATE = (KnownVarianceMean, KnownVarianceLocals)
DATA = 60


@pytest.fixture
def measured():
    """Sixty numbers around 1."""
    return 1.0 + 0.9 * torch.randn(DATA, dtype=F64)


def noise_of(program, batch):
    zeta, eps = torch.tensor(0.7, dtype=F64), torch.linspace(-1.0, 1.5, batch, dtype=F64)
    return (zeta, eps) if isinstance(program, KnownVarianceLocals) else (zeta,)


@pytest.mark.parametrize("family", CONJUGATE)
@pytest.mark.parametrize("estimator", ["A", "B"])
def test_conjugate_equation_21_and_24_at_fixed_noise(measured, family, estimator):
    program, x = family(DATA), measured[:7]
    noise = noise_of(program, 7)
    expected = -program.f_by_hand(x, *noise, *[None] * (2 - len(noise)), estimator).mean()

    with fed(*noise):
        got = AEVB(estimator).differentiable_loss(program.model, program.guide, x)

    assert_equal({"loss": got}, {"loss": expected})
    assert_equal(parameter_gradients(got, program), parameter_gradients(expected, program))


@pytest.mark.parametrize("family", CONJUGATE)
def test_conjugate_posterior_leaves_no_variance_and_no_gap(measured, family):
    """(21) summed over the data is log p(X), whatever is drawn, where q is the posterior."""
    program = family(DATA)
    mean, std = program.posterior(measured)
    with torch.no_grad():
        program.m.fill_(mean)
        program.log_t.fill_(math.log(std))
    if family is KnownVarianceLocals:
        program.make_locals_exact()

    losses = []
    for seed in range(3):
        with torch.no_grad(), NoiseMode(keyed(seed)):
            losses.append(AEVB("A").loss(program.model, program.guide, measured))

    exact = program.log_evidence(measured)
    np.testing.assert_allclose(losses, -exact, rtol=1e-10)
    np.testing.assert_allclose(float(program.bound(measured).detach()), exact, rtol=1e-10)


def scores(program, objective, x, count=20_000):
    """|z| of the mean loss and gradients of ``count`` single-datum steps against the bound's."""
    loss, grads = draws_of(program, objective, x, count)
    bound = program.bound(x)
    expected = parameter_gradients(-bound, program) | {"loss": -bound.detach()}
    found = []
    for name, draws in (grads | {"loss": program.num_data * loss}).items():
        error = draws.std(0) / count**0.5
        found.append(float((draws.mean(0) - expected[name]).abs() / error.clamp_min(1e-12)))
    return found


@pytest.mark.parametrize("estimator", ["A", "B"])
@pytest.mark.parametrize("family", CONJUGATE)
def test_equation_22_is_unbiased_for_equation_14(measured, family, estimator):
    """A random datum, a mu and a z for each of 20,000 draws; value and gradient of the bound."""
    program = family(DATA)
    assert max(scores(program, AEVB(estimator), measured)) < 4
    if family is KnownVarianceLocals:  # with the exact q(z | x, mu), (14) itself: z integrated
        program.make_locals_exact()
        like = KnownVarianceMean(DATA, scale=program.variance() ** 0.5)
        assert_equal({"bound": program.bound(measured)}, {"bound": like.bound(measured)})
        assert max(scores(program, AEVB(estimator), measured)) < 4


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("family", CONJUGATE)
def test_a_wrong_scale_is_biased_for_equation_14(measured, family, mutant):
    assert max(scores(family(DATA), mutant("B"), measured)) > 10


def gap_after_training(program, x, objective, steps=600):
    """Nats below log p(X), after minibatches of 20 at a step that decays to zero."""

    def decaying(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: max(1 - i / steps, 0.0) ** 2)

    pv.fit(program, x, objective, steps=steps, batch_size=20, optimizer=torch.optim.Adam, lr=0.05,
           schedule=decaying, engine="eager")  # fmt: skip
    return program.log_evidence(x) - float(program.bound(x).detach())


@pytest.mark.parametrize(
    ("family", "estimator"),
    [(KnownVarianceMean, "A"), (KnownVarianceLocals, "B")],
)
def test_the_trained_bound_is_the_exact_log_evidence(measured, family, estimator):
    """Of all 60 data together, to 1e-3 nats."""
    gap = gap_after_training(family(DATA), measured, AEVB(estimator, num_particles=100))

    assert -1e-10 < gap < 1e-3


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_scale_trains_to_a_bound_below_the_evidence(measured, mutant):
    """The posterior of mu comes out too narrow, or too wide, by a factor of sqrt(N / B)."""
    objective = mutant("B", num_particles=10)
    assert gap_after_training(KnownVarianceMean(DATA), measured, objective, steps=400) > 0.02
