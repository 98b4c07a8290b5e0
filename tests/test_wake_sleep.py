"""Wake-sleep against gradients by hand, exact enumeration, and the optimum that it alone has."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

from pyro_vae import engine
from pyro_vae.densities.dreams import dream, guide_log_density
from pyro_vae.densities.particles import densities
from pyro_vae.models import bernoulli_vae, linear_gaussian
from pyro_vae.objectives import AEVB, Objective, WakeSleep
from pyro_vae.objectives.base import EMPTY
from pyro_vae.program import trainable
from pyro_vae.program.base import Program
from pyro_vae.training.fitting import fit

from .oracles import (
    CORNERS,
    LogisticRows,
    assert_equal,
    fed,
    gradients,
    hermite,
    logistic_sleep,
    logistic_wake,
    parameter_gradients,
    sleep_by_hand,
    wake_by_hand,
    z_scores,
)
from .test_linear_gaussian import FORMS, program_of


class Flow(nn.Module):
    """q(z | x): a Gaussian whose mean is a linear function of x, pushed through a flow."""

    def __init__(self, transform):
        super().__init__()
        self.net, self.transform = nn.Linear(3, 2), transform

    def forward(self, x):
        base = dist.Normal(self.net(x), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [self.transform])


def flow_vae(transform):
    return bernoulli_vae.build(3, latent_dim=2, hidden_dim=3, posterior=Flow(transform))


@pytest.mark.parametrize("name", ["planar", "radial", "sylvester"])
@pytest.mark.parametrize("engine", ["auto", "pyro"])
def test_a_flow_without_an_inverse_is_refused_by_name_and_aevb_takes_it(name, engine):
    """Its density is known at its own last draw alone, and Pyro says so by a bare KeyError."""
    x = (torch.rand(10, 3) < 0.5).float()
    program = flow_vae(getattr(dist.transforms, name)(2))
    with pytest.raises(ValueError, match=rf'site "z": {name.title()} has no inverse.*AEVB\(\)'):
        fit(program, x, WakeSleep(), steps=2, engine=engine)
    fit(program, x, AEVB("A"), steps=2, engine=engine)


def test_a_flow_with_an_inverse_learns_by_wake_sleep():
    x = (torch.rand(10, 3) < 0.5).float()
    program = flow_vae(dist.transforms.affine_coupling(2, hidden_dims=[3]))
    before = [p.detach().clone() for p in program.posterior.parameters()]
    fit(program, x, WakeSleep(), steps=2)
    after = list(program.posterior.parameters())
    assert not any(torch.equal(b, a) for b, a in zip(before, after, strict=True))


def asleep(program, x):
    return guide_log_density(program, *dream(program, x))


class WakeReparameterized(Objective):
    """A mutant: the wake draws carry gradient, so log p reaches the guide."""

    def loss_per_datum(self, program, x):
        return -densities(program, x).log_p.mean(0) - asleep(program, x)


class DreamsNotDetached(Objective):
    """A mutant: dreams by the reparameterized model, so log q reaches the model."""

    def loss_per_datum(self, program, x):
        awake = densities(program, x, reparameterize=False)
        trace = pyro.poutine.trace(pyro.poutine.uncondition(program.model)).get_trace(x)
        dreamt = trace.nodes["x"]["value"], {"z": trace.nodes["z"]["value"]}
        return -awake.log_p.mean(0) - guide_log_density(program, *dreamt)


class PooledWeights(Objective):
    """A mutant: the wake phase weighted by importance weights normalized over the batch."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, reparameterize=False)
        weights = d.log_w.detach().flatten().softmax(0).reshape(d.log_w.shape) * d.log_w.numel()
        return -(weights * d.log_p).mean(0) - asleep(program, x)


class SleepOnTheData(Objective):
    """A mutant: the guide learns its own draws on the data in place of dreams."""

    def loss_per_datum(self, program, x):
        d = densities(program, x, reparameterize=False)
        asleep(program, x)
        return -d.log_p.mean(0) - d.log_q.mean(0)


MUTANTS = [WakeReparameterized(), DreamsNotDetached(), PooledWeights(), SleepOnTheData()]


# --- no noise in it -------------------------------------------------------------------------------


def check_at_fixed_noise(objective, particles=1, noise="full", posterior="full"):
    program = program_of(noise, posterior)
    x = torch.randn(9, 5, dtype=torch.float64)
    wake = torch.randn(particles, 9, 2, dtype=torch.float64)
    sleep = torch.randn(9, 2, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)

    expected = wake_by_hand(program, x, wake) | sleep_by_hand(program, *sleep)

    assert_equal(gradients(program, objective, x, wake, *sleep), expected)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize(("noise", "posterior"), FORMS)
def test_gradient_at_fixed_noise_is_the_one_by_hand(particles, noise, posterior):
    """Wake for the model's parameters, sleep for the guide's, for all forms of covariance."""
    check_at_fixed_noise(WakeSleep(particles), particles, noise, posterior)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_fail_at_fixed_noise(mutant):
    with pytest.raises(AssertionError, match="not close"):
        check_at_fixed_noise(mutant)


def check_in_expectation(objective):
    """One row for each wake node, dream node and dreamt x: a whole integral in one run."""
    program, x = LogisticRows(), CORNERS[2]
    t, v = hermite(60)
    logits = t[:, None] * program.weight + program.bias  # of a dream z' = t
    dreamt = dist.Bernoulli(logits=logits.detach()).to_event(1).log_prob(CORNERS[:, None]).exp()
    wake, asleep, corner = torch.meshgrid(*map(torch.arange, (60, 60, 4)), indexing="ij")
    weight = v[wake] * v[asleep] * dreamt[corner, asleep]
    uniform = 1 - CORNERS[corner.flatten()]  # below every probability, or above

    got = gradients(
        program,
        objective,
        x.expand(weight.numel(), -1),
        t[wake],
        t[asleep],
        uniform,
        weight=weight.flatten(),
    )

    expected = -logistic_wake(program, x) - logistic_sleep(program)
    assert_equal(got, parameter_gradients(expected, program))


def test_expected_gradient_is_wake_for_the_model_and_sleep_for_the_guide():
    """Quadrature over both latents and all four dreams, for a likelihood that is not conjugate."""
    check_in_expectation(WakeSleep())


@pytest.mark.parametrize("mutant", [WakeReparameterized(), PooledWeights(), SleepOnTheData()])
def test_mutants_fail_in_expectation(mutant):
    with pytest.raises(AssertionError, match="not close"):
        check_in_expectation(mutant)


def test_wake_does_not_reach_the_guide_nor_sleep_the_model(oracle, x):
    """Each phase by itself, and the objective by turns with new noise in one of them."""
    guide = {name for name, _ in oracle.named_parameters() if name.startswith("guide")}
    wake = densities(oracle, x, reparameterize=False).log_p.sum()
    for name, gradient in parameter_gradients(wake, oracle).items():
        assert bool(gradient.any()) == (name not in guide), name
    for name, gradient in parameter_gradients(asleep(oracle, x).sum(), oracle).items():
        assert bool(gradient.any()) == (name in guide), name

    def noise(*shape):
        return torch.randn(shape, dtype=torch.float64)

    wake, *sleep = noise(9, 2), noise(9, 2), noise(9, 5)
    before = gradients(oracle, WakeSleep(), x, wake, *sleep)
    other_wake = gradients(oracle, WakeSleep(), x, noise(9, 2), *sleep)
    other_sleep = gradients(oracle, WakeSleep(), x, wake, noise(9, 2), noise(9, 5))
    for name in before:
        changed, kept = (other_sleep, other_wake) if name in guide else (other_wake, other_sleep)
        assert torch.equal(before[name], kept[name]), name
        assert not torch.equal(before[name], changed[name]), name


def test_wake_gradient_of_the_model_is_that_of_aevb_for_the_same_latents(oracle, x):
    """log p(x, z) reaches the model in the same way; the two differ in the guide alone."""
    eps, *sleep = (torch.randn(9, dim, dtype=torch.float64) for dim in (2, 2, 5))

    wake = gradients(oracle, WakeSleep(), x, eps, *sleep)

    for estimator in ("A", "B"):
        aevb = gradients(oracle, AEVB(estimator), x, eps)
        for name in wake:
            same = torch.allclose(wake[name], aevb[name], rtol=1e-8, atol=1e-8)
            assert same == (not name.startswith("guide")), name


def test_exact_posterior_is_a_fixed_point_of_the_sleep_phase(oracle):
    """E log q(z | x) over the joint is largest at the posterior; integrated by products of nodes.

    With five pixels and two latents the integrand is quadratic in seven normals, so two nodes each
    are enough.
    """
    oracle.guide_is_exact_posterior()
    grid = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 7)
    x = torch.zeros(len(grid), 5, dtype=torch.float64)
    wake = torch.zeros(len(grid), 2, dtype=torch.float64)

    found = gradients(oracle, WakeSleep(), x, wake, grid[:, :2], grid[:, 2:])

    for name, gradient in found.items():
        if name.startswith("guide"):
            assert gradient.abs().max() / len(grid) < 1e-9, name


# --- where the two objectives lead ----------------------------------------------------------------

TILTED = torch.tensor([[1.0, 0.9], [0.8, 1.0], [1.1, 0.7], [-0.6, -0.9], [0.9, 1.2]])


def trained_variances(objective, updates=400, rows=400):
    """The variances that a diagonal guide ends at, with the model held fixed."""
    torch.set_default_dtype(torch.float64)
    program = linear_gaussian.build(5, noise="diagonal", weight=TILTED.double(), noise_scale=0.7)
    for name, parameter in program.named_parameters():
        parameter.requires_grad_(name.startswith("guide"))
    x = dream(program, torch.zeros(rows, 5))[0]
    graph = engine.capture(program, objective, x)
    names = list(trainable(program))
    optimizer = torch.optim.Adam([program.get_parameter(name) for name in names], lr=0.1)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates, eta_min=1e-4)
    weight = torch.full((rows,), 1 / rows)
    for step in range(updates):
        parameters = {name: program.get_parameter(name).detach() for name in names}
        noise = graph.grads.draw((0, step))
        found, _ = graph.grads(parameters, x, weight, {}, {}, noise=noise)
        for name in names:
            program.get_parameter(name).grad = found[name]
        optimizer.step()
        decay.step()
    return program, program.guide_noise.factor().detach().diagonal() ** 2


def test_sleep_ends_at_marginal_variances_and_aevb_at_conditional_ones():
    """KL(p || q) keeps (Lambda^-1)_jj, KL(q || p) keeps 1 / Lambda_jj; each rejects the other's.

    The columns of W are nearly parallel, so the two differ by a factor and the best diagonal guide
    stays far below the evidence.
    """
    program, by_sleep = trained_variances(WakeSleep())
    _, by_aevb = trained_variances(AEVB())
    precision = program.posterior_precision().detach()
    marginal, conditional = precision.inverse().diagonal(), 1 / precision.diagonal()

    assert program.diagonal_gap() > 0.3
    assert (marginal > 3 * conditional).all()
    torch.testing.assert_close(by_sleep, marginal, rtol=0.03, atol=0)
    torch.testing.assert_close(by_aevb, conditional, rtol=0.03, atol=0)


# --- what a dream is ------------------------------------------------------------------------------


def test_svi_trains_every_parameter_and_the_store_stays_empty(oracle, x):
    before = {name: p.detach().clone() for name, p in oracle.named_parameters()}
    svi = SVI(oracle.model, oracle.guide, pyro.optim.Adam({"lr": 0.02}), loss=WakeSleep())
    bound = AEVB().loss(oracle.model, oracle.guide, x)

    for _ in range(100):
        svi.step(x)

    assert AEVB().loss(oracle.model, oracle.guide, x) < bound
    for name, parameter in oracle.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    assert len(pyro.get_param_store()) == 0


def test_statistics_score_the_guide_by_the_same_bound_as_aevb(oracle, x):
    noise = [torch.randn(9, dim, dtype=torch.float64) for dim in (2, 2, 5)]
    with fed(*noise):
        _, stats = WakeSleep().terms(oracle, x, EMPTY)
    with fed(noise[0]):
        _, expected = AEVB("A").terms(oracle, x, EMPTY)

    assert_equal({name: stats[name] for name in expected}, expected, tolerance=1e-10)
    assert set(stats) - set(expected) == {"sleep"}
    assert stats["sleep"].shape == (9,)


class Switch(Program):
    """A discrete latent, a covariate that shifts x, and an observed site with a switchable form."""

    def __init__(self, form="itself"):
        super().__init__()
        self.form = form
        self.logit, self.slope = (nn.Parameter(torch.tensor(v)) for v in (0.3, 0.8))
        self.mean = nn.Parameter(torch.tensor([-1.0, 1.0]))

    def model(self, x):
        x, shift = x["x"], x["shift"]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=self.logit))
            law = dist.Normal(self.mean[z.long()] + shift, 0.5)
            if self.form == "masked":
                law = law.mask(x > -9)
            pyro.sample("x", law, obs=x.abs() if self.form == "function" else x)

    def guide(self, x):
        with pyro.plate("data", len(x["x"])):
            pyro.sample("z", dist.Bernoulli(logits=self.slope * (x["x"] - x["shift"])))


def switch_data(rows=50):
    return {"x": torch.randn(rows), "shift": torch.linspace(-3, 3, rows)}


def test_latents_may_be_discrete_and_dreams_keep_the_covariates():
    program, x = Switch(), switch_data()

    dreamt, latents = dream(program, x)
    loss, _ = WakeSleep(2).terms(program, x, EMPTY)
    loss.sum().backward()

    assert torch.equal(dreamt["shift"], x["shift"])
    assert dreamt["x"].shape == (50,)
    residual = dreamt["x"] - x["shift"] - program.mean.detach()[latents["z"].long()]
    assert residual.std() < 0.8
    assert all(p.grad.abs() > 0 for p in (program.slope, program.logit))


@pytest.mark.parametrize(
    ("form", "reason"), [("function", "takes a function of x"), ("masked", "is masked")]
)
def test_observed_site_that_is_not_x_itself_is_refused(form, reason):
    """A dream of it would be no dream of x: the guide would learn on data that do not exist."""
    with pytest.raises(ValueError, match=reason):
        WakeSleep().terms(Switch(form), switch_data(), EMPTY)


class WithFactor(Program):
    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("y", -(z**2))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.mean, 1.0))


def test_a_factor_is_refused():
    """Its weights make ancestral draws no draws from the model."""
    with pytest.raises(ValueError, match=r'"y" of the model is a pyro\.factor'):
        WakeSleep().terms(WithFactor(), torch.zeros(3), EMPTY)


def test_view_of_x_is_x_itself():
    """Images may be observed flat: the same numbers in the same order."""

    class Flat(Program):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(4))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                law = dist.Normal(z + self.bias, 1.0).to_event(1)
                pyro.sample("x", law, obs=x.reshape(len(x), 4))

        def guide(self, x):
            with pyro.plate("data", len(x)):
                mean = self.bias[:1] + x.sum((1, 2))[:, None]
                pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))

    dreamt, _ = dream(Flat(), torch.zeros(3, 2, 2))

    assert dreamt.shape == (3, 2, 2)
    assert WakeSleep().terms(Flat(), torch.zeros(3, 2, 2), EMPTY)[0].shape == (3,)


def test_the_observed_site_has_any_name_and_must_be_there():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("pixels", dist.Normal(z, 1.0), obs=x)

    def blind(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))

    with pytest.raises(ValueError, match=r"no observed site \(sites: z\): pass obs=x"):
        WakeSleep().terms(Program(blind, guide), torch.zeros(3), EMPTY)
    named = Program(model, guide)
    assert WakeSleep().terms(named, torch.zeros(3), EMPTY)[0].shape == (3,)


def test_global_latent_and_missing_latent_are_refused():
    def model(x):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def with_scale(x):
        pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        without(x)

    def without(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    for guide, reason in ((with_scale, "use AEVB"), (without, "in the model and not in the guide")):
        with pytest.raises(ValueError, match=reason):
            WakeSleep().terms(Program(model, guide), torch.zeros(3), EMPTY)


def test_wrong_options_name_what_is_expected():
    with pytest.raises(ValueError, match="whole number from 1 on"):
        WakeSleep(0)


# --- statistics -----------------------------------------------------------------------------------


def worst_score(objective, rows=20_000):
    one = LogisticRows()
    expected = parameter_gradients(-logistic_wake(one, CORNERS[2]) - logistic_sleep(one), one)
    return z_scores(LogisticRows(rows), objective, CORNERS[2], expected).max()


def test_gradient_is_unbiased():
    """20,000 independent draws of it, one per row, against quadrature and enumeration."""
    assert worst_score(WakeSleep()) < 4.5


@pytest.mark.parametrize("mutant", [WakeReparameterized(), PooledWeights(), SleepOnTheData()])
def test_mutants_are_biased(mutant):
    assert worst_score(mutant) > 4.5
