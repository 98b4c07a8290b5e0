"""Priors against written-out densities, SciPy's, and quadrature; see also test_parts.py."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import nn
from torch.distributions import Distribution, kl_divergence

import pyro_vae as pv
from pyro_vae import engine, posteriors, priors
from pyro_vae.distributions import LogisticNormal, Mixture, mixtures
from pyro_vae.distributions.flows import NormalizingFlow, zuko
from pyro_vae.models import bernoulli_vae
from pyro_vae.noise import Noise, NoiseMode, keyed
from pyro_vae.objectives import AEVB

J, D, H, B, K = 2, 6, 5, 4, 7
KEY = (5, 3, 1)
NORMAL = Noise("normal", (B, J), torch.float64, torch.device("cpu"))


@pytest.mark.parametrize(
    ("prior", "theirs"),
    [
        (priors.Normal(J, 4.0), scipy.stats.norm(scale=0.5)),
        (priors.Laplace(J, scale=2.0), scipy.stats.laplace(scale=2.0)),
        (priors.StudentT(J, df=3.0, scale=2.0), scipy.stats.t(3.0, scale=2.0)),
        (priors.Logistic(J, scale=2.0), scipy.stats.logistic(scale=2.0)),
        (priors.Gumbel(J, loc=1.0, scale=2.0), scipy.stats.gumbel_r(1.0, 2.0)),
        (priors.Exponential(J, rate=2.0), scipy.stats.expon(scale=0.5)),
        (priors.Gamma(J, concentration=3.0, rate=2.0), scipy.stats.gamma(3.0, scale=0.5)),
        (priors.LogNormal(J, loc=1.0, scale=0.5), scipy.stats.lognorm(0.5, scale=math.e)),
        (priors.Beta(J, concentration1=2.0, concentration0=3.0), scipy.stats.beta(2.0, 3.0)),
        (priors.Uniform(J, low=-1.0, high=2.0), scipy.stats.uniform(-1.0, 3.0)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "scipy's",
)
def test_draws_and_density_of_a_factorized_prior_are_scipys(prior, theirs):
    law = prior.double()()
    z = law.sample((2000,))
    assert torch.allclose(law.log_prob(z), torch.tensor(theirs.logpdf(z.numpy()).sum(-1)))
    for column in z.T:
        assert scipy.stats.kstest(column.numpy(), theirs.cdf).pvalue > 1e-4
    assert bool(prior.support.check(z).all())


def test_the_dirichlet_density_is_scipys(double):
    law = priors.Dirichlet(3, concentration=0.7).double()()
    z = law.sample((50,))
    theirs = scipy.stats.dirichlet([0.7] * 3).logpdf((z / z.sum(-1, keepdim=True)).numpy().T)
    assert torch.allclose(law.log_prob(z), torch.tensor(theirs))


def test_equal_shares_are_the_centre_of_the_logistic_normal(double):
    z = priors.LogisticNormal(4, scale=1e-3).double()().sample((100,))
    assert torch.allclose(z, torch.full_like(z, 0.25), atol=2e-3)


def test_the_logistic_normal_keeps_its_digits_near_the_corners():
    """Where one share is all but a ten millionth, 1 - (the sum of the others) is nothing."""
    loc = torch.tensor([14.0, -1.0, 12.0, 0.0])
    law = LogisticNormal(loc, torch.full((4,), 0.1))
    z = law.sample((20,))
    exact = LogisticNormal(loc.double(), torch.full((4,), 0.1).double()).log_prob(z.double())
    assert torch.allclose(law.log_prob(z).double(), exact, rtol=1e-4)  # of the kept draw
    assert torch.allclose(law.log_prob(z.clone()).double(), exact, rtol=1e-4)
    with pyro.validation_enabled(False):
        theirs = dist.LogisticNormal(loc, torch.full((4,), 0.1)).log_prob(z)
    assert not torch.allclose(theirs.double(), exact, rtol=1e-1)  # torch's is off by many nats


def test_the_kl_of_two_logistic_normals_is_that_of_their_normals(double):
    x = torch.randn(B, D)
    posterior = posteriors.LogisticNormal(D, 3, H, init_std=0.5).double()
    prior = priors.LogisticNormal(3, scale=2.0).double()
    normals = [law.base_dist for law in (posterior(x), prior())]
    closed = kl_divergence(posterior(x), prior().expand((B,)))
    assert torch.allclose(closed, kl_divergence(normals[0], normals[1].expand((B,))))
    z = posterior(x).sample((100_000,))
    sampled = posterior(x).log_prob(z) - prior().log_prob(z)
    assert ((sampled.mean(0) - closed).abs() < 5 * sampled.std(0) / 100_000**0.5).all()


# --- mixtures -----------------------------------------------------------------------------------


@pytest.fixture
def mixture(double):
    prior = priors.MixtureOfNormals(K, latent_dim=J)
    for parameter in prior.parameters():
        parameter.data.normal_()
    return prior


def by_hand(prior, z):
    """log sum_k w_k prod_j N(z_j; m_kj, s_kj^2), and the same with the two in the wrong order."""
    scale = (prior.log_variances.exp() + prior.floor**2).sqrt()
    each = dist.Normal(prior.means, scale).log_prob(z.unsqueeze(1))  # (S, K, J)
    weights = prior.logits.log_softmax(0)
    return (
        (weights + each.sum(-1)).logsumexp(-1),
        (weights.unsqueeze(-1) + each).logsumexp(1).sum(-1),
    )


def test_a_mixture_sums_joint_densities(mixture):
    z = torch.randn(50, J)
    joint, of_each_latent = by_hand(mixture, z)
    assert torch.allclose(mixture().log_prob(z), joint)
    assert not torch.allclose(of_each_latent, joint, atol=0.1)


def test_draws_of_a_mixture_have_its_moments(mixture):
    weights = mixture.logits.softmax(0).unsqueeze(-1)
    mean = (weights * mixture.means).sum(0)
    square = (weights * (mixture.means**2 + mixture.log_variances.exp())).sum(0)
    z = mixture().expand((3,)).sample((40_000,)).reshape(-1, J)
    error = 5 * z.std(0) / len(z) ** 0.5
    assert ((z.mean(0) - mean).abs() < error).all()
    assert ((z.square().mean(0) - square).abs() < 5 * z.square().std(0) / len(z) ** 0.5).all()


def test_a_large_table_is_made_in_pieces(mixture, monkeypatch):
    law, z = mixture(), torch.randn(50, J)
    whole = law.log_prob(z)
    monkeypatch.setattr(mixtures, "LARGEST", 3 * z.numel())
    assert torch.allclose(law.log_prob(z), whole)


def test_a_mixture_stays_one_in_a_plate(mixture):
    law = mixture().expand((5, 3))
    assert law.batch_shape == (5, 3) and law.sample((2,)).shape == (2, 5, 3, J)
    z = torch.randn(J)
    assert law.log_prob(z).shape == (5, 3)
    assert torch.allclose(law.log_prob(z), mixture().log_prob(z))


def test_a_mixture_equals_torchs_own(mixture):
    scale = (mixture.log_variances.exp() + mixture.floor**2).sqrt()
    theirs = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=mixture.logits),
        torch.distributions.Independent(torch.distributions.Normal(mixture.means, scale), 1),
    )
    z = torch.randn(9, J)
    assert torch.allclose(mixture().log_prob(z), theirs.log_prob(z))


# --- VampPrior ----------------------------------------------------------------------------------


def vae(bounds=None, posterior=None):
    torch.manual_seed(0)
    posterior = posterior or posteriors.Gaussian(D, J, H, init_std=0.5)
    prior = priors.VampPrior(K, latent_dim=J, data_dim=D, posterior=posterior, bounds=bounds)
    prior.free.data.normal_()
    return bernoulli_vae.build(
        D, latent_dim=J, hidden_dim=H, init_std=0.5, prior=prior, posterior=posterior
    )


@pytest.fixture
def bits(double):
    return torch.bernoulli(torch.full((B, D), 0.4))


def test_the_vamp_density_is_the_mean_of_the_posteriors_of_its_pseudo_inputs(double):
    program, z = vae(bounds=(-1.0, 2.0)), torch.randn(9, J)
    u = -1.0 + 3.0 * program.prior.free.sigmoid()
    of_each = torch.stack([program.posterior(u[k : k + 1]).log_prob(z).exp() for k in range(K)])
    assert torch.allclose(program.prior().log_prob(z), of_each.mean(0).log())
    assert torch.equal(program.prior.pseudo_inputs, u)
    assert not torch.allclose(of_each.log().mean(0), of_each.mean(0).log())


def test_draws_of_the_vamp_prior_have_its_mean(double):
    program = vae()
    law = program.posterior(program.prior.pseudo_inputs)
    z = program.prior().sample((40_000,))
    assert ((z.mean(0) - law.mean.mean(0)).abs() < 5 * z.std(0) / len(z) ** 0.5).all()


def test_the_posterior_of_a_vamp_prior_is_registered_once(bits):
    program = vae()
    assert [n for n in program.state_dict() if n.startswith("prior.")] == ["prior.free"]
    twin = copy.deepcopy(program)
    assert twin.prior.posterior is twin.posterior and twin.posterior is not program.posterior
    before = program.prior().log_prob(torch.zeros(J))
    with torch.no_grad():
        twin.posterior.network[0].weight.add_(1.0)
    assert torch.equal(program.prior().log_prob(torch.zeros(J)), before)
    assert not torch.equal(twin.prior().log_prob(torch.zeros(J)), before)


def test_a_vamp_prior_on_another_posterior_is_refused():
    """Nobody would train that one, and a saved run would not hold it."""
    program = vae()
    other = posteriors.Gaussian(D, J, H)
    parts = dict(likelihood=program.likelihood, posterior=other)
    with pytest.raises(ValueError, match=r"VampPrior on another Gaussian .* the same object"):
        pv.VAE(prior=program.prior, **parts)
    sized = pv.VAE.build(D, latent_dim=J, prior=priors.VampPrior(K), **parts)
    assert sized.prior.posterior is sized.posterior is other


def test_a_vamp_prior_of_covariates_is_refused():
    posterior = posteriors.Gaussian(D, J, H, given_dim=2)
    with pytest.raises(ValueError, match="given_dim=2, expected one that takes x alone"):
        priors.VampPrior(K, latent_dim=J, data_dim=D, posterior=posterior)


@pytest.mark.parametrize("sized", [True, False])
def test_a_vamp_prior_comes_back_on_the_posterior_of_its_program(tmp_path, sized, bits):
    program = vae()
    if not sized:
        program = pv.VAE.build(bits, latent_dim=J, hidden_dim=H, prior=priors.VampPrior(K))
        assert {tuple(u) for u in program.prior.pseudo_inputs.tolist()} <= {
            tuple(row) for row in bits.tolist()
        }
    pv.fit(program, bits, AEVB("A"), steps=1, engine="eager", progress=False, out=tmp_path)
    loaded = pv.load(tmp_path).program
    assert loaded.prior.posterior is loaded.posterior
    z = torch.randn(3, J)
    assert torch.equal(loaded.prior().log_prob(z), program.prior().log_prob(z))
    pv.fit(loaded, bits, AEVB("A"), steps=1, engine="eager", progress=False)


# --- conditional --------------------------------------------------------------------------------


def test_the_conditional_prior_is_the_normal_of_its_network(double):
    prior = priors.Conditional(J, H, given_dim=3)
    for parameter in prior.parameters():
        parameter.data.normal_()
    given = {"b": torch.randn(B, 2), "a": torch.randn(B)}
    mean, log_variance = prior.network(
        torch.cat([given["a"].unsqueeze(1), given["b"]], -1)  # in the order of names
    ).chunk(2, -1)
    z = torch.randn(B, J)
    scale = (log_variance.exp() + 1e-8).sqrt()
    assert torch.allclose(prior(given).log_prob(z), dist.Normal(mean, scale).log_prob(z).sum(-1))
    with pytest.raises(ValueError, match=r"the covariates a are 1 numbers a row, expected .* = 3"):
        prior({"a": torch.randn(B)})
    with pytest.raises(ValueError, match=r"given_dim is 0, .*: give x as a dict with covariates"):
        pv.VAE.build(
            D, latent_dim=J, prior=priors.Conditional(), likelihood=pv.likelihoods.Bernoulli()
        )


def test_a_conditional_vae_learns_its_prior(bits):
    x = {"x": bits.repeat(25, 1), "c": torch.randn(100, 3)}
    program = pv.VAE.build(x, latent_dim=J, hidden_dim=H, prior=priors.Conditional()).double()
    before = {name: p.clone() for name, p in program.prior.named_parameters()}
    pv.check(program, x)
    pv.fit(program, x, steps=3, engine="eager", progress=False)
    assert all(not torch.equal(p, before[n]) for n, p in program.prior.named_parameters())
    drawn = pv.sample(program, 5, like={"c": torch.randn(1, 3)})
    assert drawn.shape == (5, D)


def through_the_prior(program, x, noise):
    """The encoder's gradient of the negative ELBO, and without what flows through the prior."""

    def gradient(prior):
        q = program.posterior(x)
        z = q.mean + q.base_dist.scale * noise
        log_p = program.likelihood(z).log_prob(x) + prior.log_prob(z)
        weights = list(program.posterior.parameters())
        return torch.autograd.grad(-(log_p - q.log_prob(z)).sum(), weights)

    of_constants = copy.deepcopy(program).requires_grad_(False)
    return gradient(program.prior()), gradient(of_constants.prior())


def test_the_gradient_reaches_the_encoder_through_the_prior(bits):
    program, objective = vae(), AEVB("A")
    expected, without = through_the_prior(program, bits, keyed(*KEY)(0, NORMAL))
    params = {name: p.detach() for name, p in program.named_parameters()}
    args = params, bits, torch.ones(B), {}, {}
    graph = engine.capture(program, objective, bits)
    assert isinstance(graph, engine.Graph), graph

    captured, _ = graph.grads(*args, noise=graph.grads.draw(KEY))
    with NoiseMode(keyed(*KEY)):
        eager, _ = engine.functions.gradient_function(program, objective)(*args)

    for got in (captured, eager):
        mine = [got[name] for name in params if name.startswith("posterior.")]
        for a, b, c in zip(mine, expected, without, strict=True):
            assert torch.allclose(a, b) and not torch.allclose(a, c, rtol=0.05)


@pytest.mark.slow
@pytest.mark.compiled
def test_compiled_steps_train_the_pseudo_inputs_as_eager_ones_do(bits):
    runs = {}
    for kind in ("eager", "compiled"):
        program = vae()
        pv.fit(program, bits, AEVB("A"), steps=4, batch_size=B, engine=kind, progress=False)
        runs[kind] = dict(program.named_parameters())
    moved = dict(vae().named_parameters())
    for name, p in runs["eager"].items():
        assert not torch.equal(p, moved[name]), name
        assert torch.allclose(p, runs["compiled"][name], atol=1e-6), name


@pytest.mark.filterwarnings("ignore:khat exceeds")
def test_a_vamp_prior_stays_trainable_after_an_evaluation(bits):
    program = vae()
    before = {n: p.clone() for n, p in program.named_parameters()}
    pv.log_evidence(program, bits, num_particles=1000)
    assert all(p.requires_grad and torch.equal(p, before[n]) for n, p in program.named_parameters())
    pv.fit(program, bits, AEVB("A"), steps=1, engine="eager", progress=False)
    assert all(not torch.equal(p, before[n]) for n, p in program.named_parameters())


def test_pseudo_inputs_start_at_rows_of_the_data(bits):
    prior = vae().prior
    prior.start(bits)
    found = {tuple(row) for row in prior.pseudo_inputs.tolist()}
    assert found <= {tuple(row) for row in bits.tolist()} and len(found) > 1
    bounded = vae(bounds=(0.0, 1.0)).prior
    bounded.start(bits)
    rounded = {tuple(row) for row in bounded.pseudo_inputs.round().tolist()}
    assert rounded <= {tuple(row) for row in bits.tolist()}
    assert bounded.pseudo_inputs.min() > 0.0 and bounded.pseudo_inputs.max() < 1.0
    bounded().log_prob(torch.zeros(J)).backward()
    assert (bounded.free.grad.abs() > 0).all()  # a clamp would have none at 0 and 1


def test_pseudo_inputs_of_another_shape_or_range_are_refused(bits):
    with pytest.raises(ValueError, match=r"shape \(5,\), expected the pseudo-inputs' \(6,\)"):
        vae().prior.start(bits[:, :5])
    with pytest.raises(ValueError, match=r"from 0 to 2, expected within .* 0 to 1: .*bounds=None"):
        vae(bounds=(0.0, 1.0)).prior.start(2 * bits)


# --- flows and chains ---------------------------------------------------------------------------

FLOWS = {
    "spline": lambda: priors.Flow(J, hidden=(8,), transforms=2),
    "affine": lambda: priors.Flow(J, hidden=(8,), transforms=2, kind="affine"),
    "chain": lambda: priors.Autoregressive(J, hidden=(8,)),
}


@pytest.fixture(params=FLOWS)
def flow(request, double):
    torch.manual_seed(1)
    prior = FLOWS[request.param]().double()
    for parameter in prior.parameters():
        parameter.data.normal_(0.0, 0.3)
    return prior()


def test_sampler_and_density_of_a_flow_agree_in_two_dimensions(flow):
    """E f(z) of draws is the integral of f(z) p(z); so it is not with log-determinants twice."""
    with torch.no_grad():
        z = flow.sample((20_000,))
        v = torch.linspace(-7, 7, 401)
        axis, length = 2 * v.sinh(), 2 * v.cosh() * (v[1] - v[0])
        grid, area = torch.cartesian_prod(axis, axis), torch.cartesian_prod(length, length).prod(-1)
        u, log_det = flow.transform.inv.call_and_ladj(grid)
        density = flow.log_prob(grid).exp() * area
        mutant = (flow.base_dist.log_prob(u) + 2 * log_det).exp() * area
    assert abs(density.sum() - 1) < 2e-3
    assert abs(mutant.sum() - 1) > 0.05
    for f in (lambda z: z.tanh()[:, 0], lambda z: z.tanh().prod(-1), lambda z: z.cos()[:, 1]):
        error = 5 * f(z).std() / len(z) ** 0.5
        assert abs(f(z).mean() - (f(grid) * density).sum()) < error + 2e-3


def test_a_flow_knows_the_density_of_its_own_draw(flow):
    z = flow.rsample((5,))
    assert flow.log_prob(z) is flow.log_prob(z)
    again = flow.log_prob(z.clone())
    assert torch.allclose(flow.log_prob(z), again)
    with torch.no_grad():
        sampled = flow.sample((5,))
    assert flow.log_prob(sampled).requires_grad  # what was kept without a graph would have none


def test_the_gradient_at_an_own_draw_is_the_gradient_at_a_copy(double):
    prior = FLOWS["affine"]().double()
    kept = prior()
    z = kept.rsample((5,))
    grads = [
        torch.autograd.grad(log_p.sum(), list(prior.parameters()), retain_graph=True)
        for log_p in (kept.log_prob(z), prior().log_prob(z))
    ]
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b)


def test_a_chain_is_a_product_of_normal_conditionals(double):
    prior = priors.Autoregressive(3, hidden=(8,)).double()
    z = torch.randn(9, 3)
    affine = prior.transform.transforms[0](None).meta(z).base  # u = z exp(a) + b
    mean, scale = -affine.shift / affine.scale, 1 / affine.scale
    expected = dist.Normal(mean, scale).log_prob(z).sum(-1)
    assert torch.allclose(prior().log_prob(z), expected)
    for j in range(3):
        slopes = torch.autograd.functional.jacobian(
            lambda z, j=j: prior.transform.transforms[0](None).meta(z).base.shift[j], z[0]
        )
        assert (slopes[j:] == 0).all()  # of those before it alone


def test_a_chain_of_lag_one_forgets_all_but_the_last(double):
    prior = priors.Autoregressive(4, lag=1, hidden=(16,)).double()

    def third(z):
        return prior.transform.transforms[0](None).meta(z).base.shift[3]

    slopes = torch.autograd.functional.jacobian(third, torch.randn(4))
    assert slopes[2] != 0 and (slopes[[0, 1, 3]] == 0).all()


def test_to_print_a_flow_draws_no_numbers():
    prior, before = priors.Flow(J), torch.get_rng_state()
    assert "MonotonicRQSTransform" in repr(prior)
    assert torch.equal(torch.get_rng_state(), before)


def test_zuko_leaves_the_validation_of_others_as_it_is():
    assert Distribution._validate_args is __debug__
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(0.0, -1.0)
    assert isinstance(vars(Distribution)["arg_constraints"], property) and zuko.__version__


# --- wrong arguments ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            dict(prior=priors.Laplace(3)),
            "latent_dim is 3 of the prior Laplace, 2 of .*one:",
        ),
        (dict(prior=priors.MixtureOfNormals(K, latent_dim=3)), "3 of the prior Mixture"),
        (dict(posterior=posteriors.Gaussian(D, 3)), "2 of the prior Normal, .* 3 of the posterior"),
        (dict(posterior=posteriors.Gaussian(5, J)), "data_dim is 6 of the like.* 5 of the poste"),
        (dict(likelihood=pv.likelihoods.Bernoulli(J, 5)), "data_dim is 5 of the likelihood Bern"),
    ],
)
def test_a_part_of_another_size_is_named(parts, said):
    with pytest.raises(ValueError, match=said) as refused:
        pv.VAE.build(D, latent_dim=J, **{"likelihood": pv.likelihoods.Bernoulli()} | parts)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: priors.Conditional(2, given_dim=0), "given_dim is 0, .* covariates beside"),
        (lambda: priors.Laplace(0), "latent_dim is 0, expected a whole number from 1 on"),
        (lambda: priors.Laplace(2, scale=-1), "scale is -1, expected a positive number"),
        (lambda: priors.Dirichlet(1), "latent_dim is 1, expected .* from 2 on: one share"),
        (lambda: priors.LogisticNormal(1), "latent_dim is 1, expected .* from 2 on: one share"),
        (lambda: priors.Uniform(2, low=1.0, high=0.0), r"high is 0.0, expected .*\(1.0, inf\)"),
        (lambda: priors.MixtureOfNormals(0, latent_dim=2), "num_components is 0"),
        (
            lambda: priors.MixtureOfNormals(2, latent_dim=2, spread=1.5),
            r"spread is 1.5, .* \(0, 1\)",
        ),
        (lambda: priors.Flow(2, kind="radial"), "kind is 'radial', expected \"spline\" or"),
        (lambda: priors.Flow(2, bins=1), "bins is 1, expected a whole number from 2"),
        (lambda: priors.Flow(2, hidden=()), r"hidden is \(\), expected sizes of hidden layers"),
        (lambda: priors.Autoregressive(2, lag=0), "lag is 0, .* or None for all latents before"),
        (lambda: vae(bounds=(1.0, 1.0)), r"bounds\[1\] is 1.0, expected .*\(1.0, inf\)"),
        (lambda: vae(bounds=1.0), "bounds is 1.0, expected two numbers"),
    ],
)
def test_a_wrong_argument_is_named(make, said):
    with pytest.raises(ValueError, match=said) as refused:
        make()
    assert len(str(refused.value).splitlines()) == 1


def test_laws_of_ours_stand_in_pyro_sample():
    means = torch.zeros(2, J)
    mixture = Mixture(torch.zeros(2), lambda index: dist.Normal(means[index], 1.0).to_event(1))
    flow = NormalizingFlow(priors.Flow(J).transform(None), priors.Normal(J)())
    for law in (mixture, flow):
        with pyro.plate("data", 3):
            assert pyro.sample("z", law).shape == (3, J)
