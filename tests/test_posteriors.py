"""Posteriors against what is known of them; see also test_parts.py, which lists all."""

import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import nn
from torch.distributions import constraints

import pyro_vae as pv
from pyro_vae import distributions, posteriors, priors
from pyro_vae.densities.particles import densities
from pyro_vae.distributions.flows import zuko
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.models import linear_gaussian
from pyro_vae.objectives import AEVB, Autoencoder
from pyro_vae.program.base import Program

J, D, H, B = 2, 6, 5, 4


def rows(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def drawn(posterior, scale=0.5):
    """In double precision, with parameters that are not small."""
    for parameter in posterior.double().parameters():
        parameter.data.normal_(0.0, scale)
    return posterior


# --- families by location, scale and shape ------------------------------------------------------

FAMILIES = {
    "Gaussian": lambda m, s: scipy.stats.norm(m, (s.exp() + 1e-8) ** 0.5),
    "Laplace": lambda m, s: scipy.stats.laplace(m, (s.exp() + 1e-8) ** 0.5),
    "Logistic": lambda m, s: scipy.stats.logistic(m, (s.exp() + 1e-8) ** 0.5),
    "StudentT": lambda m, s: scipy.stats.t(5.0, m, (s.exp() + 1e-8) ** 0.5),
    "LogNormal": lambda m, s: scipy.stats.lognorm((s.exp() + 1e-8) ** 0.5, scale=m.exp()),
    "Exponential": lambda s: scipy.stats.expon(scale=(s.exp() + 1e-8) ** 0.5),
    "Erlang": lambda s: scipy.stats.gamma(2, scale=(s.exp() + 1e-8) ** 0.5),
    "Gamma": lambda a, m: scipy.stats.gamma(
        shape := ((2 * a).exp() + 0.01) ** 0.5, scale=((2 * m).exp() + 1e-8) ** 0.5 / shape
    ),
    "Beta": lambda a, b: scipy.stats.beta(
        ((2 * a).exp() + 0.01) ** 0.5, ((2 * b).exp() + 0.01) ** 0.5
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_factorized_posterior_is_scipys_law_of_the_networks_outputs(name):
    posterior = drawn(getattr(posteriors, name)(D, J, H))
    x = rows(B, D)
    with torch.no_grad():
        law, z = posterior(x), posterior(x).sample((3,))
        heads = posterior.network(x).chunk(posterior.heads, dim=-1)
        theirs = FAMILIES[name](*heads)
        assert torch.allclose(law.log_prob(z), torch.tensor(theirs.logpdf(z.numpy()).sum(-1)))
        assert torch.allclose(law.mean, torch.tensor(theirs.mean()))
        assert all(posterior.support.check(z).flatten())


@pytest.mark.parametrize("name", ["Gamma", "Beta", "Dirichlet", "LogitNormal", "LogisticNormal"])
@pytest.mark.parametrize("output", [-30.0, 30.0])
def test_draws_at_the_ends_of_a_network_have_finite_densities(name, output):
    posterior = getattr(posteriors, name)(D, 3, H)
    for parameter in posterior.parameters():
        parameter.data.zero_()
    last = list(posterior.network.modules())[-1]
    last.bias.data.fill_(output)
    if name.endswith("Normal"):
        last.bias.data.chunk(2)[1].zero_()
    z = posterior(torch.zeros(1000, D)).rsample()
    assert posterior(torch.zeros(1000, D)).log_prob(z).isfinite().all()


def test_the_image_of_the_logit_normal_is_the_box():
    posterior = drawn(posteriors.LogitNormal(D, J, H, low=-1.0, high=3.0))
    law = posterior(rows(B, D))
    z = law.rsample((200,))
    assert z.min() > -1 and z.max() < 3 and torch.equal(law.log_prob(z), law.log_prob(z))
    y = ((z + 1) / 4).logit()
    normal = law.base_dist.base_dist
    expected = (normal.log_prob(y) - ((z + 1) * (3 - z) / 4).log()).sum(-1)
    assert torch.allclose(law.log_prob(z.clone()), expected)
    assert torch.allclose(law.log_prob(z), expected)


# --- dependent normals --------------------------------------------------------------------------


class WithGuide(Program):
    """A model with another guide."""

    def __init__(self, oracle, posterior):
        super().__init__()
        self.oracle, self.posterior = oracle, posterior

    def model(self, x):
        self.oracle.model(x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))


def linear(posterior_class, oracle, entries, **options):
    """A posterior whose mean is the exact one and whose other outputs are constants."""
    outputs = nn.Linear(5, 2 + len(entries), dtype=torch.float64)
    posterior = posterior_class(5, 2, network=lambda i, o: outputs, **options)
    gain = torch.linalg.solve(oracle.posterior_precision(), oracle._scaled_weight().T)
    with torch.no_grad():
        outputs.weight.zero_()
        outputs.weight[:2] = gain
        outputs.bias[:2] = -gain @ oracle.bias
        outputs.bias[2:] = torch.tensor(entries, dtype=torch.float64)
    return WithGuide(oracle, posterior)


def test_a_full_normal_holds_the_exact_posterior_of_the_linear_gaussian_model(oracle, x):
    factor = torch.linalg.cholesky(oracle.posterior_precision().inverse()).detach()
    squares = (factor.diagonal().square() - 1e-8).log().tolist()
    program = linear(posteriors.FullNormal, oracle, [*squares, factor[1, 0].item()])
    log_w = densities(program, x, num_particles=7).log_w
    assert torch.allclose(log_w, oracle.log_evidence(x).expand(7, -1))
    mutant = linear(posteriors.FullNormal, oracle, [*squares, 0.0])
    assert not torch.allclose(densities(mutant, x, 7).log_w, log_w, atol=1e-2)


def test_a_low_rank_normal_holds_the_same_posterior(oracle, x):
    covariance = oracle.posterior_precision().inverse().detach()
    (a, c), (_, b) = covariance.tolist()
    first = (a * c**2 / b) ** 0.25  # so that both variances that are left are positive
    second = c / first
    left = [math.log(a - first**2 - 1e-6), math.log(b - second**2 - 1e-6)]
    program = linear(posteriors.LowRankNormal, oracle, [*left, first, second], rank=1)
    log_w = densities(program, x, num_particles=7).log_w
    assert torch.allclose(log_w, oracle.log_evidence(x).expand(7, -1))


def test_a_full_normal_learns_what_a_gaussian_cannot(double):
    weight = torch.tensor([[1.0, 0.5], [0.8, 0.8], [0.0, 0.4], [0.7, 0.2], [0.3, 0.6]])
    oracle, x, gaps = linear_gaussian.build(5, weight=weight), rows(9, 5), {}
    for cls, start in ((posteriors.FullNormal, [0.0] * 3), (posteriors.Gaussian, [0.0] * 2)):
        program = linear(cls, oracle, start)
        optimizer = torch.optim.Adam([program.posterior.network.bias], 0.05)
        for step in range(120):
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 120)
            optimizer.zero_grad()
            (-densities(program, x).log_w.mean()).backward()
            optimizer.step()
        log_w = densities(program, x, 2000).log_w
        gaps[cls] = (oracle.log_evidence(x) - log_w.mean(0)).mean().item()
    assert gaps[posteriors.FullNormal] < 0.03
    assert gaps[posteriors.Gaussian] > 0.9 * oracle.diagonal_gap().item() > 0.1


def test_the_factor_of_a_full_normal_is_lower_triangular(double):
    posterior = drawn(posteriors.FullNormal(D, 4, H))
    x = rows(B, D)
    factor, out = posterior(x).scale_tril, posterior.network(x)
    assert torch.equal(factor, factor.tril()) and (factor.diagonal(dim1=-2, dim2=-1) > 0).all()
    below = torch.tril_indices(4, 4, -1)
    assert torch.equal(factor[:, below[0], below[1]], out[:, 8:])
    assert posteriors.FullNormal(D, 1, H)(x).event_shape == (1,)


# --- mixtures -----------------------------------------------------------------------------------


def mixture(size, equal=False):
    torch.manual_seed(1)
    logits, locs, scales = rows(3), rows(3, size), rows(3, size).exp()
    if equal:
        locs = locs[:1].expand(3, size).clone()
    return [t.requires_grad_() for t in (logits, locs, scales)]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("equal", [False, True])
def test_draws_of_a_mixture_carry_the_gradient_of_all_parameters(size, equal):
    parameters = mixture(size, equal)
    law = distributions.MixtureOfNormals(*parameters)
    weights = torch.arange(1.0, size + 1, dtype=torch.float64)

    z = law.rsample((40_000,))

    def gradient(f):
        found = torch.autograd.grad(f, parameters, retain_graph=True, allow_unused=True)
        return [
            torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)
        ]

    exact = [gradient((weights * f).sum()) for f in (law.mean, law.variance + law.mean.square())]
    for power, expected in zip((1, 2), exact, strict=True):
        blocks = (weights * z**power).sum(-1).reshape(20, -1).mean(1)
        found = [gradient(block) for block in blocks]
        for number, want in enumerate(expected):
            each = torch.stack([gradients[number] for gradients in found])
            error = each.std(0) / 20**0.5
            assert ((each.mean(0) - want).abs() < 5.5 * error + 1e-9).all()


def test_a_mixture_posterior_has_the_joint_density_and_its_own_draws(double):
    posterior = drawn(posteriors.MixtureOfNormals(D, J, H, num_components=4))
    law = posterior(rows(B, D))
    theirs = dist.MixtureSameFamily(
        dist.Categorical(logits=law.logits), dist.Normal(law.locs, law.scales).to_event(1)
    )
    z = law.rsample((5,))
    assert torch.allclose(law.log_prob(z), theirs.log_prob(z))
    assert torch.allclose(law.mean, theirs.mean) and torch.allclose(law.variance, theirs.variance)
    wide = law.expand((2, B))
    assert wide.rsample((3,)).shape == (3, 2, B, J) and wide.log_prob(z[0]).shape == (2, B)
    many = law.sample((20_000,))
    assert ((many.mean(0) - law.mean).abs() < 5 * many.std(0) / 20_000**0.5).all()


# --- flows --------------------------------------------------------------------------------------


@pytest.fixture(params=["AutoregressiveFlow", "SplineFlow"])
def flow(request):
    torch.manual_seed(1)
    return drawn(getattr(posteriors, request.param)(D, 4, H, hidden=(8,), transforms=3), 0.4)


def test_the_density_of_a_flow_is_the_change_of_variables(flow):
    law = flow(rows(1, D))
    u = law.base_dist.rsample()
    z = law.transform(u)
    jacobian = torch.autograd.functional.jacobian(law.transform, u).reshape(4, 4)
    expected = law.base_dist.log_prob(u) - jacobian.det().abs().log()
    assert torch.allclose(law.log_prob(z), expected)
    mutant = law.base_dist.log_prob(u) + jacobian.det().abs().log()
    assert not torch.allclose(law.log_prob(z), mutant)
    assert torch.allclose(law.transform.inv(z), u)


def passes(flow, run):
    """How often the networks of all transforms run."""
    count = 0

    def counting(*_):
        nonlocal count
        count += 1

    hooks = [t.hyper.register_forward_hook(counting) for t in flow.transform.transforms]
    run()
    for hook in hooks:
        hook.remove()
    return count


def test_a_draw_and_its_density_take_one_pass_and_another_z_takes_more(flow):
    law = flow(rows(B, D))
    transforms, sequential = 3, 4 if isinstance(flow, posteriors.AutoregressiveFlow) else 2
    assert passes(flow, lambda: law.log_prob(law.rsample())) == transforms
    z = law.rsample().detach()
    assert passes(flow, lambda: law.log_prob(z)) == transforms * (sequential + 1)


def test_a_flow_starts_as_its_gaussian():
    for cls in (posteriors.AutoregressiveFlow, posteriors.SplineFlow):
        torch.manual_seed(0)
        law = cls(D, J, H)(torch.randn(500, D))
        u = law.base_dist.rsample()
        assert (law.transform(u) - u).abs().mean() < 0.1


def flow_vae(posterior):
    torch.manual_seed(0)
    options = dict(latent_dim=J, hidden_dim=H, likelihood=pv.likelihoods.Bernoulli())
    return pv.VAE.build(D, posterior=posterior, **options)


@pytest.mark.parametrize("name", ["AutoregressiveFlow", "SplineFlow", "LogitNormal"])
def test_the_code_of_a_posterior_without_a_mean_is_asked_for_as_draws(name):
    prior = priors.Uniform() if name == "LogitNormal" else None
    torch.manual_seed(0)
    program = pv.VAE.build(
        D, latent_dim=J, hidden_dim=H, likelihood=pv.likelihoods.Bernoulli(),
        posterior=getattr(posteriors, name)(), prior=prior,
    )  # fmt: skip
    x = torch.bernoulli(torch.full((B, D), 0.5))
    with pytest.raises(ValueError, match="has no mean: ask for draws, num_draws=100"):
        pv.encode(program, x)
    assert pv.encode(program, x, num_draws=3).shape == (3, B, J)
    with pytest.warns(PyroVaeWarning, match="average over draws of"):
        assert pv.reconstruct(program, x).shape == (B, D)
    with pytest.raises(ValueError, match="has no mean"):
        pv.fit(program, x, Autoencoder(), steps=1, progress=False)


def test_a_flow_of_zuko_stands_in_a_program():
    class Zuko(nn.Module):
        def __init__(self):
            super().__init__()
            self.flow = zuko.flows.NSF(J, transforms=1, hidden_features=(8,))

        def forward(self):
            return self.flow()

    program = flow_vae(posteriors.Gaussian())
    program.prior = Zuko()
    x = torch.bernoulli(torch.full((B, D), 0.5))
    d = densities(program, x)
    expected = program.prior.flow().log_prob(d.latents["z"])
    assert torch.allclose(d.log_prior, expected)
    pv.fit(program, x, AEVB("A"), steps=2, progress=False)


# --- which posterior for which prior ------------------------------------------------------------


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        (priors.Normal(J), "Gaussian"),
        (priors.Laplace(), "Gaussian"),
        (priors.Gamma(), "LogNormal"),
        (priors.Beta(), "LogitNormal"),
        (priors.Dirichlet(), "LogisticNormal"),
        (priors.Uniform(low=-2.0, high=2.0), "LogitNormal"),
        (priors.VampPrior(3), "Gaussian"),
    ],
)
def test_the_usual_posterior_has_the_support_of_the_prior(prior, expected):
    torch.manual_seed(0)
    program = pv.VAE.build(
        D, latent_dim=J, hidden_dim=H, likelihood=pv.likelihoods.Bernoulli(), prior=prior
    )
    assert type(program.posterior).__name__ == expected
    assert posteriors.fits(program.posterior.support, program.prior.support)
    x = torch.bernoulli(torch.full((B, D), 0.5))
    assert densities(program, x, 3).log_w.isfinite().all()


POSITIVE, BOX = constraints.positive, constraints.interval(-1.0, 1.0)


@pytest.mark.parametrize(
    ("q", "p", "fits"),
    [
        (constraints.real_vector, constraints.real, True),
        (constraints.real_vector, POSITIVE, False),
        (POSITIVE, constraints.real_vector, True),
        (POSITIVE, constraints.independent(constraints.nonnegative, 1), True),
        (constraints.unit_interval, POSITIVE, True),
        (constraints.unit_interval, BOX, True),
        (BOX, constraints.unit_interval, False),
        (BOX, POSITIVE, False),
        (constraints.simplex, constraints.simplex, True),
        (constraints.simplex, constraints.real_vector, False),
        (constraints.real_vector, constraints.simplex, False),
        (constraints.interval(torch.zeros(2), torch.ones(2)), constraints.unit_interval, True),
        (constraints.positive_definite, constraints.real, True),  # nobody can tell
    ],
)
def test_a_posterior_fits_where_it_does_not_leave_the_prior(q, p, fits):
    assert posteriors.fits(q, p) is fits


def test_what_is_suggested_has_the_support_of_the_prior():
    assert "LogNormal" in posteriors.suggested(POSITIVE)
    assert posteriors.suggested(constraints.simplex) == ["Dirichlet", "LogisticNormal"]
    assert posteriors.suggested(constraints.unit_interval) == ["Beta", "LogitNormal"]
    assert posteriors.suggested(BOX) == ["LogitNormal(low=-1, high=1)"]
    real = posteriors.suggested(constraints.real_vector)
    assert {"FullNormal", "Gaussian", "AutoregressiveFlow"} <= set(real)
    assert not set(real) & {"Beta", "Gamma", "Dirichlet"}


@pytest.mark.parametrize(
    ("prior", "posterior", "said"),
    [
        (priors.Exponential(), posteriors.Gaussian(),
         r"Gaussian draws numbers in \(-inf, inf\), .* Exponential of numbers in \(0, inf\): .*"
         "Erlang, Exponential, Gamma, LogNormal"),
        (priors.Dirichlet(), posteriors.LogNormal(), "of shares of a whole: .*: Dirichlet, Logist"),
        (priors.Normal(), posteriors.Dirichlet(), "draws shares of a whole, .*, FullNormal, "),
        (priors.Uniform(high=2.0), posteriors.LogitNormal(high=3.0),
         r"in \(0, 3\), .* in \(0, 2\): pass one of .*: LogitNormal\(low=0, high=2\)"),
        (priors.Beta(), posteriors.Gamma(), r"in \(0, inf\), .* in \(0, 1\): .*Beta, LogitNormal"),
    ],
)  # fmt: skip
def test_a_posterior_that_leaves_the_prior_is_refused_with_those_that_do_not(
    prior, posterior, said
):
    options = dict(latent_dim=J, likelihood=pv.likelihoods.Bernoulli())
    with pytest.raises(ValueError, match=said) as refused:
        pv.VAE.build(D, prior=prior, posterior=posterior, **options)
    assert len(str(refused.value).splitlines()) == 1


def test_a_positive_posterior_beside_a_prior_of_reals_is_taken():
    program = pv.VAE.build(
        D, latent_dim=J, likelihood=pv.likelihoods.Bernoulli(), posterior=posteriors.LogNormal()
    )
    assert densities(program, torch.zeros(B, D)).log_w.isfinite().all()


@pytest.mark.parametrize(
    "support", [constraints.less_than(3.0), constraints.positive_definite, constraints.boolean]
)
def test_a_support_that_no_posterior_has_is_named(support):
    with pytest.raises(ValueError, match=r"the prior's support is .*posterior of your own"):
        posteriors.suited(support)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: posteriors.StudentT(D, J, df=1.0), r"df is 1.0, expected .*\(1, inf\)"),
        (lambda: posteriors.LowRankNormal(D, J, rank=0), "rank is 0, expected a whole number"),
        (lambda: posteriors.FullNormal(D, J, floor=0), "floor is 0, expected a positive"),
        (lambda: posteriors.LogitNormal(D, J, low=1.0), r"high is 1.0, expected .*\(1.0, inf\)"),
        (lambda: posteriors.Dirichlet(D, 1), "latent_dim is 1, .*: one share is the whole"),
        (lambda: posteriors.LogisticNormal(D, 1), "latent_dim is 1, .*: one share is the whole"),
        (lambda: posteriors.AutoregressiveFlow(D, J, transforms=0), "transforms is 0"),
        (lambda: posteriors.SplineFlow(D, J, bins=1), "bins is 1, .* from 2"),
        (lambda: posteriors.MixtureOfNormals(D, J, num_components=0), "num_components is 0"),
        (lambda: posteriors.Erlang(D, J, shape=1.5), "shape is 1.5, expected a whole number"),
    ],
)
def test_a_wrong_argument_is_named(make, said):
    with pytest.raises(ValueError, match=said) as refused:
        make()
    assert len(str(refused.value).splitlines()) == 1
