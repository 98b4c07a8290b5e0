"""The families of section 2.4 against SciPy: densities, draws, quantiles, pathwise gradients."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats as ss
import torch

from pyro_vae import distributions
from pyro_vae.graphs.lifted import Lifted
from pyro_vae.graphs.lifting import lift
from pyro_vae.noise import NoiseMode

from .families import FAMILIES, INVERSE, OURS, Family

N = 40_000
GRID = np.linspace(0.001, 0.999, 97)
every_family = pytest.mark.parametrize("name", FAMILIES)
each_of_ours = pytest.mark.parametrize("name", OURS)


@pytest.fixture(autouse=True)
def _in_double_precision(double):
    """Against SciPy's."""


def tensors(family):
    return {name: torch.tensor(value) for name, value in family.at.items()}


# --- checks, as functions, so that mutants can be given to them -----------------------------------


def density_differs(family, points):
    law, value = family(**tensors(family)), torch.tensor(points)
    return np.abs(law.log_prob(value).numpy() - family.beside().logpdf(points)).max()


def ks_pvalue(family):
    torch.manual_seed(0)
    draws = family(**tensors(family)).rsample((N,))
    return ss.kstest(draws.numpy(), family.beside().cdf).pvalue


def pathwise_z_scores(family):
    """For each parameter and of E z and E z^2: how many standard errors the gradient is off."""
    torch.manual_seed(1)
    copies = {k: v.expand(N).clone().requires_grad_() for k, v in tensors(family).items()}
    z = family(**copies).rsample()
    functions = [lambda z: z, torch.square] if family.moments else [torch.cos]
    for function, power in zip(functions, (1, 2), strict=False):
        grads = torch.autograd.grad(function(z).sum(), list(copies.values()), retain_graph=True)
        for (parameter, value), grad in zip(family.at.items(), grads, strict=True):

            def expected(v, parameter=parameter, power=power):
                if not family.moments:  # E cos z of a Cauchy variate
                    m, s = ({**family.at, parameter: v}[k] for k in ("loc", "scale"))
                    return math.cos(m) * math.exp(-s)
                return family.beside(**{parameter: v}).moment(power)

            slope = (expected(value + 1e-4) - expected(value - 1e-4)) / 2e-4
            error = grad.std().item() / math.sqrt(N) + 1e-6
            yield parameter, power, (grad.mean().item() - slope) / error


# --- every family ---------------------------------------------------------------------------------


@every_family
def test_the_log_density_is_scipys(name):
    family = FAMILIES[name]
    assert density_differs(family, family.beside().ppf(GRID)) < 1e-10


@every_family
def test_the_draws_have_scipys_cdf(name):
    assert ks_pvalue(FAMILIES[name]) > 1e-3


@every_family
def test_the_pathwise_gradients_of_moments_are_the_analytic_ones(name):
    for parameter, power, score in pathwise_z_scores(FAMILIES[name]):
        assert abs(score) < 4.5, (parameter, power, score)


@pytest.mark.parametrize("name", INVERSE)
def test_the_quantile_function_is_scipys(name):
    family = FAMILIES[name]
    law, beside = family(**tensors(family)), family.beside()
    u = torch.tensor(GRID)
    torch.testing.assert_close(law.icdf(u), torch.tensor(beside.ppf(GRID)), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(law.cdf(law.icdf(u)), u, rtol=1e-9, atol=1e-11)


@every_family
def test_mean_variance_and_entropy_are_scipys(name):
    family = FAMILIES[name]
    law, beside = family(**tensors(family)), family.beside()
    if family.moments:
        assert law.mean.item() == pytest.approx(beside.mean(), rel=1e-10)
        assert law.variance.item() == pytest.approx(beside.var(), rel=1e-10)
    if name in OURS:
        assert law.entropy().item() == pytest.approx(float(beside.entropy()), rel=1e-8)


@every_family
def test_the_draws_are_captured_with_their_gradients(name):
    family = FAMILIES[name]

    def gradients(parameters):
        leaves = {k: v.detach().requires_grad_() for k, v in parameters.items()}
        with torch.enable_grad():
            z = family(**leaves).rsample((5,))
            return z.detach(), torch.autograd.grad(z.cos().sum(), list(leaves.values()))

    lifted = lift(gradients, tensors(family))
    assert isinstance(lifted, Lifted), str(lifted)
    if name in OURS:  # all of the noise is an input, and none of it depends on a parameter
        assert not lifted.kept and lifted.noise


# --- vectors --------------------------------------------------------------------------------------


def test_a_dirichlet_vector_is_scipys():
    a = torch.tensor([1.2, 2.3, 0.9], requires_grad=True)
    law = dist.Dirichlet(a)
    torch.manual_seed(0)
    z = law.expand((N,)).rsample()
    beside = ss.dirichlet(a.detach().numpy())
    expected = beside.logpdf(z[:99].detach().numpy().T)
    np.testing.assert_allclose(law.log_prob(z[:99]).detach(), expected, atol=1e-10)
    total = a.detach().sum().item()
    for i in range(3):
        marginal = ss.beta(a[i].item(), total - a[i].item())
        assert ss.kstest(z[:, i].detach().numpy(), marginal.cdf).pvalue > 1e-3
    for power in (1, 2):
        copies = a.detach().expand(N, 3).clone().requires_grad_()
        drawn = dist.Dirichlet(copies).rsample()
        (grad,) = torch.autograd.grad((drawn[:, 0] ** power).sum(), copies)
        exact = a[0] / a.sum() * ((a[0] + 1) / (a.sum() + 1) if power == 2 else 1)
        (slope,) = torch.autograd.grad(exact, a)
        assert ((grad.mean(0) - slope).abs() < 4.5 * grad.std(0) / math.sqrt(N)).all()


def test_an_elliptical_vector_is_scipys():
    loc, tril = torch.tensor([0.4, -1.0]), torch.tensor([[1.2, 0.0], [0.5, 0.8]])
    law = dist.MultivariateStudentT(12.0, loc, tril)
    torch.manual_seed(0)
    z = law.rsample((N,))
    beside = ss.multivariate_t(loc.numpy(), (tril @ tril.T).numpy(), df=12)
    np.testing.assert_allclose(law.log_prob(z[:99]), beside.logpdf(z[:99].numpy()), atol=1e-10)
    marginal = ss.t(12, loc[1].item(), tril[1].norm().item())
    assert ss.kstest(z[:, 1].numpy(), marginal.cdf).pvalue > 1e-3
    copies = tril.expand(N, 2, 2).clone().requires_grad_()
    drawn = dist.MultivariateStudentT(12.0, loc, copies).rsample()
    (grad,) = torch.autograd.grad(drawn[:, 1].square().sum(), copies)
    # E z_1^2 = m_1^2 + (L_10^2 + L_11^2) 12 / 10
    slope = torch.tensor([[0.0, 0.0], [2 * 0.5 * 1.2, 2 * 0.8 * 1.2]])
    assert ((grad.mean(0) - slope).abs() <= 4.5 * grad.std(0) / math.sqrt(N)).all()


# --- the three examples of the slides -------------------------------------------------------------


class SlidesNormal(dist.Normal):
    """As it is printed: the variance in place of the standard deviation."""

    def rsample(self, sample_shape=torch.Size()):
        return self.loc + self.scale**2 * torch.randn(self._extended_shape(sample_shape))


def test_a_normal_is_its_mean_plus_the_standard_deviation_times_noise():
    m, s = torch.tensor([0.4, -1.0]), torch.tensor([0.7, 2.0])
    eps = torch.randn(5, 2)
    with NoiseMode(lambda i, noise: eps):
        assert torch.equal(dist.Normal(m, s).rsample((5,)), m + s * eps)


def test_one_with_the_variance_is_found_by_every_check_of_draws():
    mutant = FAMILIES["Normal"]._replace(law=SlidesNormal)
    assert density_differs(mutant, mutant.beside().ppf(GRID)) < 1e-10  # its density is right
    assert ks_pvalue(mutant) < 1e-10
    scores = {(p, k): abs(s) for p, k, s in pathwise_z_scores(mutant)}
    assert scores["scale", 2] > 10 and scores["loc", 1] < 4.5


def test_an_exponential_is_minus_the_logarithm_of_noise_by_its_rate():
    rate, eps = torch.tensor(1.7), torch.rand(9)
    expected = -torch.log(1 - eps) / rate
    torch.testing.assert_close(dist.Exponential(rate).icdf(eps), expected)
    with NoiseMode(lambda i, noise: -torch.log1p(-eps)):  # the standard exponential of that noise
        torch.testing.assert_close(dist.Exponential(rate).rsample((9,)), expected)


def test_a_gamma_of_whole_shape_is_a_sum_of_exponentials():
    theta, eps = torch.tensor(0.6), torch.rand(4, 9)
    law = distributions.Erlang(4, 1 / theta)
    with NoiseMode(lambda i, noise: -torch.log1p(-eps)):
        torch.testing.assert_close(law.rsample((9,)), -theta * torch.log(1 - eps).sum(0))
    torch.testing.assert_close(
        law.log_prob(torch.tensor(1.1)), dist.Gamma(4.0, 1 / theta).log_prob(torch.tensor(1.1))
    )
    for wrong in (2.5, 0, -1):
        with pytest.raises(ValueError, match=r"concentration is .*, expected a whole number"):
            distributions.Erlang(wrong, 1.0)


# --- ours as laws of torch ------------------------------------------------------------------------


def drawn_from(law, eps):
    with NoiseMode(lambda i, noise: eps.to(noise.dtype)):
        return law.rsample((len(eps),))


@pytest.mark.parametrize("name", [name for name in OURS if name != "Erlang"])
def test_a_draw_is_the_quantile_of_its_noise(name):
    family = FAMILIES[name]
    eps = torch.tensor([0.1, 0.5, 0.93])
    got = drawn_from(family(**tensors(family)), eps)
    torch.testing.assert_close(got, torch.tensor(family.beside().ppf(eps)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_of_ours
def test_a_draw_at_the_ends_of_the_noise_is_finite(name, dtype):
    family = FAMILIES[name]
    law = family(**{k: v.to(dtype) for k, v in tensors(family).items()})
    noise = torch.tensor([0.0, 1 - 2.0**-24])
    if name != "Erlang":
        draws = drawn_from(law, noise)
        assert draws.dtype == dtype and draws.isfinite().all()
        assert law.support.check(draws).all() and law.log_prob(draws).isfinite().all()
    assert law.sample().dtype == law.mean.dtype == law.log_prob(law.sample()).dtype == dtype


@each_of_ours
def test_shapes_are_torchs(name):
    family = FAMILIES[name]
    batch = {k: v.expand(2, 1).clone() for k, v in tensors(family).items()}
    law = family(**batch).expand((4, 2, 3))
    assert law.batch_shape == law.mean.shape == law.variance.shape == (4, 2, 3)
    assert law.rsample((5,)).shape == (5, *law.entropy().shape)
    assert type(law) is type(family(**batch)) and law.has_rsample
    event = law.to_event(2)
    assert event.log_prob(event.rsample()).shape == (4,) and event.mask(False).event_dim == 2
    assert law.log_prob(torch.ones(())).shape == (4, 2, 3)
    again = law.expand((6, 4, 2, 3))
    assert again.log_prob(again.sample()).shape == (6, 4, 2, 3)


@each_of_ours
def test_impossible_parameters_and_values_are_refused(name):
    family = FAMILIES[name]
    sign = 1 if name == "Triangular" else -1  # it takes any numbers that are in order
    values = [sign * value for value in tensors(family).values()][::-1]
    wrong = dict(zip(family.at, values, strict=True))
    with pytest.raises(ValueError, match=r"positive|GreaterThan|not in order|not below"):
        family(**wrong, validate_args=True)
    if name != "Logistic":
        with pytest.raises(ValueError, match="support"):
            family(**tensors(family), validate_args=True).log_prob(torch.tensor(-0.5))


@each_of_ours
def test_the_density_outside_is_zero_where_nobody_validates(name):
    family = FAMILIES[name]
    law = family(**tensors(family), validate_args=False)
    if name in ("Reciprocal", "Triangular"):
        outside = torch.tensor([-1.0, 9.0])
        assert (law.log_prob(outside) == -math.inf).all()
        assert law.cdf(outside).tolist() == [0.0, 1.0]


def test_the_quadrature_of_moments_is_the_closed_form():
    law = Family(distributions.Rayleigh, None, {})(scale=torch.tensor(1.3))
    base = distributions.InverseCDF
    assert base.mean.fget(law).item() == pytest.approx(law.mean.item(), rel=1e-11)
    assert base.variance.fget(law).item() == pytest.approx(law.variance.item(), rel=1e-11)
    plain = law.expand((2,))
    single = distributions.Gompertz(torch.full((2,), 0.6).float(), torch.tensor(1.7).float())
    assert base.mean.fget(plain).shape == (2,) and single.mean.dtype == torch.float32


def test_parameters_that_are_missing_or_unknown_are_refused_by_name():
    for wrong in (lambda: distributions.Gompertz(1.0), lambda: distributions.Rayleigh(rate=1.0)):
        with pytest.raises(TypeError, match=r"got .*, expected (concentration, rate|scale)"):
            wrong()
