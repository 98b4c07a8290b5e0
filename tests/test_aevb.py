"""AEVB against gradients written by hand, quadrature, closed forms, and Pyro's own ELBOs."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.nn.functional import softplus

from pyro_vae.densities.particles import densities
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.models import linear_gaussian, logistic_lvm
from pyro_vae.noise import NoiseMode, keyed
from pyro_vae.objectives import AEVB, Objective
from pyro_vae.objectives.base import EMPTY
from pyro_vae.program.base import Program
from pyro_vae.training.fitting import fit

from .oracles import (
    CORNERS,
    LogisticRows,
    assert_equal,
    bound_by_hand,
    fed,
    gradients,
    hermite,
    logistic_bound,
    numbers,
    parameter_gradients,
    z_scores,
)
from .test_linear_gaussian import FORMS, program_of

PYRO = {"A": Trace_ELBO, "B": TraceMeanField_ELBO}


class KLTooLarge(Objective):
    """A mutant of B: 1.05 times the KL term."""

    def loss_per_datum(self, program, x):
        d = densities(program, x)
        return 1.05 * d.kl["z"] - d.log_likelihood.mean(0)


class EntropyHeld(Objective):
    """A mutant of A: log q is detached, so nothing keeps the guide from shrinking."""

    def loss_per_datum(self, program, x):
        d = densities(program, x)
        return d.log_q.detach().mean(0) - d.log_p.mean(0)


class NotReparameterized(Objective):
    """A mutant of B: the draws carry no gradient, so the likelihood never reaches the guide."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, reparameterize=False)
        return d.kl["z"] - d.log_likelihood.mean(0)


class PooledWeights(Objective):
    """A mutant of A: its terms weighted by importance weights normalized over the batch."""

    def loss_per_datum(self, program, x):
        d = densities(program, x)
        weights = d.log_w.detach().flatten().softmax(0).reshape(d.log_w.shape) * d.log_w.numel()
        return -(weights * d.log_w).mean(0)


MUTANTS = [
    (KLTooLarge(), "B"),
    (EntropyHeld(), "A"),
    (NotReparameterized(), "B"),
    (PooledWeights(), "A"),
]


# --- no noise in it: given draws, and integrals over them -----------------------------------------


def check_at_fixed_noise(objective, estimator, particles=1, noise="full", posterior="full"):
    program = program_of(noise, posterior)
    x = torch.randn(9, 5, dtype=torch.float64)
    eps = torch.randn(particles, 9, 2, dtype=torch.float64)

    expected = bound_by_hand(program, x, eps, estimator)

    assert_equal(gradients(program, objective, x, eps), expected)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("estimator", ["A", "B"])
@pytest.mark.parametrize(("noise", "posterior"), FORMS)
def test_gradient_at_fixed_noise_is_the_one_by_hand(estimator, particles, noise, posterior):
    """Every parameter of model and guide, for all forms of covariance."""
    check_at_fixed_noise(AEVB(estimator, particles), estimator, particles, noise, posterior)


@pytest.mark.parametrize(("mutant", "estimator"), MUTANTS)
def test_mutants_fail_at_fixed_noise(mutant, estimator):
    with pytest.raises(AssertionError, match="not close"):
        check_at_fixed_noise(mutant, estimator)


def bound_by_quadrature(program, x, nodes=160):
    """The ELBO of a logistic program with one latent, (B,), in plain algebra."""
    t, v = hermite(nodes)
    first, _, second = program.encoder.network
    hidden = (x @ first.weight.T + first.bias).tanh()
    mean, log_variance = (hidden @ second.weight.T + second.bias).T
    variance = log_variance.exp() + program.encoder.floor**2
    z = mean + variance.sqrt() * t[:, None]  # (M, B)
    logits = z[..., None] * program.weight[:, 0] + program.bias
    fit = v @ (x * logits - softplus(logits)).sum(-1)
    alpha = program.prior.precision
    return fit + 0.5 * (1 + (alpha * variance).log() - alpha * (mean**2 + variance))


def check_in_expectation(objective):
    """Rows of x repeat for each node of the quadrature, so that one run is a whole integral."""
    program = logistic_lvm.build(2, hidden_dim=3, prior_precision=1.5).double()
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.normal_(0.0, 0.7)
    t, v = hermite(80)
    x = CORNERS.repeat(len(t), 1)

    got = gradients(program, objective, x, t.repeat_interleave(4), weight=v.repeat_interleave(4))

    expected = parameter_gradients(-bound_by_quadrature(program, CORNERS).sum(), program)
    assert_equal(got, expected)


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_expected_gradient_is_that_of_the_bound(estimator):
    """A likelihood that is not conjugate, and a guide with a hidden layer."""
    check_in_expectation(AEVB(estimator))


@pytest.mark.parametrize("mutant", [mutant for mutant, _ in MUTANTS])
def test_mutants_fail_in_expectation(mutant):
    with pytest.raises(AssertionError, match="not close"):
        check_in_expectation(mutant)


def test_value_of_estimator_a_has_no_variance_at_the_exact_posterior(oracle, x):
    """log p(x, z) - log p(z | x) is log p(x) for every z; estimator B keeps its noise."""
    oracle.guide_is_exact_posterior()
    evidence = oracle.log_evidence(x)

    for _ in range(5):
        loss, stats = AEVB("A").terms(oracle, x, EMPTY)
        torch.testing.assert_close(-loss, evidence, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(stats["bound"], evidence.detach(), rtol=1e-10, atol=1e-10)
    loss, _ = AEVB("B").terms(oracle, x, EMPTY)
    assert (loss + evidence).abs().min() > 1e-3


@pytest.mark.parametrize(
    ("estimator", "of_value", "of_gradient"), [("A", 0.0, 2.0), ("B", 0.25, 0.5)]
)
def test_neither_estimator_has_less_variance_as_a_law(estimator, of_value, of_gradient):
    """x = 1, prior and noise N(0, 1), guide at the posterior N(1/2, 1/2), all by quadrature.

    B = const - (1 - z)^2 / 2 with 1 - z ~ N(1/2, 1/2) has variance 1/4; its slope along the mean
    is (1 - z) - 1/2, that of A is 1 - 2 z.
    """
    program = linear_gaussian.build(1, latent_dim=1, weight=torch.ones(1, 1)).double()
    program.guide_is_exact_posterior()
    t, v = hermite(20)
    x = torch.ones(20, 1, dtype=torch.float64)

    slopes = [gradients(program, AEVB(estimator), x[:1], node)["guide_bias"] for node in t]
    with fed(t):
        values = -AEVB(estimator).terms(program, x, EMPTY)[0].detach()

    for draws, expected in ((values, of_value), (torch.cat(slopes), of_gradient)):
        assert abs(v @ draws**2 - (v @ draws) ** 2 - expected) < 1e-7


def test_estimators_agree_draw_by_draw_where_the_guide_is_the_prior(x):
    """There log q and log p(z) cancel in A, and the KL of B is zero."""
    torch.set_default_dtype(torch.float64)
    for posterior in ("diagonal", "full"):
        program = linear_gaussian.build(5, posterior=posterior)
        eps = torch.randn(9, 2, dtype=torch.float64)

        with fed(eps):
            a, _ = AEVB("A").terms(program, x, EMPTY)
        with fed(eps):
            b, _ = AEVB("B").terms(program, x, EMPTY)

        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_expected_value_is_the_bound_in_closed_form(estimator, oracle, x):
    """A product rule over both latents: every term is quadratic in the noise."""
    t, v = hermite(4)
    eps, weight = torch.cartesian_prod(t, t), torch.cartesian_prod(v, v).prod(-1)
    rows = x.repeat_interleave(16, 0)

    with fed(eps.repeat(9, 1)):
        loss, _ = AEVB(estimator).terms(oracle, rows, EMPTY)

    torch.testing.assert_close(-loss.reshape(9, 16) @ weight, oracle.elbo(x), rtol=1e-9, atol=1e-9)


def test_several_particles_are_the_mean_of_single_ones(oracle, x):
    """Loss, gradients and statistics at the same noise."""
    eps = torch.randn(3, 9, 2, dtype=torch.float64)
    for estimator in ("A", "B"):
        single = [gradients(oracle, AEVB(estimator), x, e) for e in eps]

        together = gradients(oracle, AEVB(estimator, 3), x, eps)

        mean = {name: sum(g[name] for g in single) / 3 for name in together}
        assert_equal(together, mean, tolerance=1e-10)
        with fed(eps):
            _, stats = AEVB(estimator, 3).terms(oracle, x, EMPTY)
        singles = []
        for e in eps:
            with fed(e):
                singles.append(AEVB(estimator).terms(oracle, x, EMPTY)[1])
        assert_equal(stats, {name: sum(s[name] for s in singles) / 3 for name in stats}, 1e-10)


def test_statistics_are_nats_per_datum_of_known_sign(oracle, x):
    """The bound is minus the loss, the KL the textbook's, the reconstruction log p(x | z)."""
    eps = torch.randn(9, 2, dtype=torch.float64)
    m = numbers(oracle)
    mean, covariance = x.numpy() @ m.A.T + m.c, torch.tensor(m.L @ m.L.T)

    with fed(eps):
        loss, stats = AEVB("B").terms(oracle, x, EMPTY)

    assert set(stats) == {"bound", "reconstruction", "kl.z"}
    assert not any(value.requires_grad for value in stats.values())
    torch.testing.assert_close(stats["bound"], -loss.detach())
    torch.testing.assert_close(stats["bound"], stats["reconstruction"] - stats["kl.z"])
    squares = covariance.trace() + torch.tensor(mean**2).sum(-1)
    kl = 0.5 * (m.alpha * squares - 2 - 2 * torch.tensor(m.alpha).log() - covariance.logdet())
    torch.testing.assert_close(stats["kl.z"], kl, rtol=1e-8, atol=1e-8)
    z = torch.tensor(mean) + eps @ torch.tensor(m.L.T)
    fit = z.numpy() @ m.W.T + m.b
    law = dist.MultivariateNormal(torch.tensor(fit), torch.tensor(m.C @ m.C.T))
    torch.testing.assert_close(stats["reconstruction"], law.log_prob(x), rtol=1e-8, atol=1e-8)


# --- beside Pyro ----------------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("estimator", ["A", "B"])
@pytest.mark.parametrize("posterior", ["diagonal", "full"])
def test_loss_and_gradients_are_those_of_pyros_own_elbo(estimator, posterior, particles, x):
    """Trace_ELBO is A, TraceMeanField_ELBO is B; both through SVI's own entrance."""
    program = program_of("full", posterior)
    eps = torch.randn(particles, 9, 2, dtype=torch.float64)
    found = []
    for loss, noise in (
        (PYRO[estimator](num_particles=particles), eps),  # Pyro draws one particle at a time
        (AEVB(estimator, particles), [eps]),
    ):
        program.zero_grad()
        svi = SVI(program.model, program.guide, pyro.optim.SGD({"lr": 0.1}), loss=loss)
        with fed(*noise):
            value = svi.loss_and_grads(program.model, program.guide, x)
        with fed(*noise), torch.no_grad():
            assert abs(svi.evaluate_loss(x) - value) < 1e-8 * abs(value)
        grads = {name: p.grad.clone() for name, p in program.named_parameters()}
        found.append((torch.tensor(value), grads))

    (pyro_loss, pyro_grads), (our_loss, our_grads) = found
    torch.testing.assert_close(our_loss, pyro_loss, rtol=1e-8, atol=1e-8)
    assert_equal(our_grads, pyro_grads)


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_scale_of_a_subsampled_plate_is_applied_once(estimator):
    """N / B times the sum over the batch, as in equation (8) and as in Pyro."""

    class Subsampled(LogisticRows):
        size = 4

        def model(self, x):
            with pyro.plate("data", self.size, subsample_size=len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros_like(self.offset), 1.0).to_event(1))
                logits = z * self.weight + self.bias
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", self.size, subsample_size=len(x)):
                mean = (self.gain * x).sum(-1, keepdim=True) + self.offset
                pyro.sample("z", dist.Normal(mean, self.log_scale.exp()).to_event(1))

    program, objective = Subsampled(), AEVB(estimator)

    def loss(elbo):
        with NoiseMode(keyed(3)):
            return elbo.differentiable_loss(program.model, program.guide, CORNERS)

    with NoiseMode(keyed(3)):
        per_datum, _ = objective.terms(program, CORNERS, EMPTY)
    torch.testing.assert_close(loss(objective), per_datum.sum())
    program.size = 10
    torch.testing.assert_close(loss(objective), 2.5 * per_datum.sum())
    torch.testing.assert_close(loss(objective), loss(PYRO[estimator]()))


@pytest.mark.parametrize("objective", [AEVB("A"), AEVB("B", 2)])
def test_svi_trains_every_parameter_and_the_store_stays_empty(objective, oracle, x):
    before = {name: p.detach().clone() for name, p in oracle.named_parameters()}
    svi = SVI(oracle.model, oracle.guide, pyro.optim.Adam({"lr": 0.02}), loss=objective)

    losses = [svi.step(x) for _ in range(100)]

    assert sum(losses[-10:]) < sum(losses[:10])
    for name, parameter in oracle.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    assert len(pyro.get_param_store()) == 0


def test_svi_on_functions_that_announce_nothing_says_what_to_do(x):
    """Pyro alone would take its steps and change nothing, without a word."""
    decoder = nn.Linear(2, 5).double()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss=AEVB())

    with pytest.raises(ValueError, match=r"nothing would be trained.*pv\.Program"):
        svi.step(x)


@pytest.mark.parametrize("where", ["a term", "a plate of the guide"])
def test_second_scale_is_refused(where, x):
    """The one scale that is applied is the plate's: any other would be lost without a word."""

    class Scaled(LogisticRows):
        def model(self, x):
            size, factor = (20, 1.0) if where == "a plate of the guide" else (9, 0.5)
            with pyro.plate("data", size, subsample_size=9):
                with pyro.poutine.scale(scale=factor):
                    z = pyro.sample("z", dist.Normal(0.0 * self.offset, 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[:, :1])

    with pytest.raises(ValueError, match=r"is scaled by .*, expected .* like"):
        AEVB().terms(Scaled(), x[:, :2], EMPTY)


class Coin(Program):
    """A guide without ``rsample``: z ~ Bernoulli(1/2), x | z ~ N(z, 1)."""

    def __init__(self):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(0.3))

    def model(self, x):
        with pyro.plate("data", len(x)):
            coin = pyro.sample("coin", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(coin, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("coin", dist.Bernoulli(logits=self.logit))


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_guide_without_rsample_is_refused_by_the_name_of_its_site(estimator):
    """Its gradient would be zero without a word."""
    with pytest.raises(ValueError, match=r'site "coin" has the guide Bernoulli.*WakeSleep'):
        AEVB(estimator).terms(Coin(), torch.zeros(3), EMPTY)


class Laplacian(Program):
    """Two latents, one of them with a prior for which torch knows no KL from a Gaussian."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            heavy = pyro.sample("heavy", dist.StudentT(3.0, torch.zeros_like(x), 1.0))
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(heavy + z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("heavy", dist.Normal(self.mean[0].expand(len(x)), 0.5))
            pyro.sample("z", dist.Normal(self.mean[1].expand(len(x)), 0.5))


def test_site_without_a_closed_kl_is_sampled_and_named():
    """The value is then Pyro's, which says nothing; A samples by intention, so it says nothing."""
    program, x = Laplacian(), torch.randn(4, dtype=torch.float64)
    eps = torch.randn(2, 4, dtype=torch.float64)

    with fed(*eps), pytest.warns(PyroVaeWarning, match="no closed KL is known for site 'heavy':"):
        loss, _ = AEVB("B").terms(program, x, EMPTY)

    with fed(*eps):
        expected = TraceMeanField_ELBO().differentiable_loss(program.model, program.guide, x)
    torch.testing.assert_close(loss.sum(), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AEVB("A").terms(program, x, EMPTY)


def said(record):
    return [str(w.message) for w in record if "no closed KL" in str(w.message)]


@pytest.mark.parametrize("engine", ["auto", "eager", "pyro"])
def test_a_sampled_kl_is_said_once_a_fit(engine):
    """Where all warnings are shown, one came at each step, and some more from the capture."""
    x, objective = torch.randn(12, dtype=torch.float64), AEVB()
    for _ in range(2):  # the second fit with an objective says it as well
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            fit(Laplacian(), x, objective, steps=5, batch_size=4, engine=engine)
        assert len(said(record)) == 1


def test_a_sampled_kl_is_said_once_in_anyones_own_svi():
    program, x = Laplacian(), torch.randn(4, dtype=torch.float64)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), loss=AEVB())
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for _ in range(3):
            svi.step(x)
    assert len(said(record)) == 1


def test_deterministic_site_in_model_and_guide_has_no_term_of_its_own():
    """It is no latent, so it neither asks for a KL nor changes the order of those that are."""

    class Named(Program):
        def __init__(self, names):
            super().__init__()
            self.names = names
            self.mean = nn.Parameter(torch.tensor(0.4))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                if self.names:
                    pyro.deterministic("square", z**2, event_dim=0)
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                if self.names:
                    pyro.deterministic("square", x**2, event_dim=0)
                pyro.sample("z", dist.Normal(self.mean, 1.0))

    found = []
    for names in (False, True):
        with NoiseMode(keyed(2)):
            found.append(AEVB("B").terms(Named(names), torch.zeros(3), EMPTY)[0])

    assert torch.equal(*found)


def test_wrong_options_name_what_is_expected():
    with pytest.raises(ValueError, match='expected "A" or "B"'):
        AEVB("C")
    for wrong in (0, 1.5, -2):
        with pytest.raises(ValueError, match="whole number from 1 on"):
            AEVB(num_particles=wrong)
    with pytest.raises(TypeError, match="pass covariates as a dict"):
        AEVB().differentiable_loss(None, None, 1, 2)


# --- statistics -----------------------------------------------------------------------------------

ROW = torch.tensor([1.0, 0.0], dtype=torch.float64)


def worst_score(objective, rows=20_000):
    one = LogisticRows()
    expected = parameter_gradients(-logistic_bound(one, ROW), one)
    return z_scores(LogisticRows(rows), objective, ROW, expected).max()


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_gradient_is_unbiased(estimator):
    """20,000 independent draws of it, one per row, against quadrature."""
    assert worst_score(AEVB(estimator)) < 4.5


@pytest.mark.parametrize("mutant", [mutant for mutant, _ in MUTANTS])
def test_mutants_are_biased(mutant):
    assert worst_score(mutant) > 4.5
