"""log p(x): against exact answers, and what is said of its error."""

import math

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import pyro_vae as pv
from pyro_vae.evidence.bound import elbo
from pyro_vae.evidence.weights import from_log_weights, pareto_khat
from pyro_vae.graphs.lifted import Refusal
from pyro_vae.models import bernoulli_vae, linear_gaussian, logistic_lvm


def oracle(posterior="full", **options):
    torch.manual_seed(0)
    defaults = {"latent_dim": 2, "posterior": posterior}
    return linear_gaussian.build(5, **{**defaults, **options}).double()


def rows(program, n=40):
    return pv.datasets.synthetic(program, n, like=torch.zeros(1, 5), seed=3).x.double()


def test_an_exact_guide_gives_the_exact_evidence_whatever_k():
    """All weights are equal, so there is no error, and khat says so (T22)."""
    program = oracle()
    program.guide_is_exact_posterior()
    x = rows(program)
    evidence = pv.log_evidence(program, x, num_particles=100)
    torch.testing.assert_close(evidence.value, program.log_evidence(x).detach(), rtol=0, atol=1e-8)
    torch.testing.assert_close(evidence.ess, torch.full((40,), 100.0, dtype=torch.float64))
    assert evidence.standard_error.max() < 1e-8
    assert (evidence.khat == 0).all()
    assert evidence.rhat.isnan().all() and "R-hat" not in repr(evidence)  # no chains were run


def test_the_estimate_agrees_with_the_truth_within_its_standard_error():
    """Over 200 data the z-scores of a good proposal are standard normal (kurtosis allowed for)."""
    program = oracle("diagonal")
    program.guide_is_best()
    x = rows(program, 200)
    evidence = pv.log_evidence(program, x, num_particles=2000)
    z = (evidence.value - program.log_evidence(x).detach()) / evidence.standard_error
    assert abs(float(z.mean())) < 4.5 / math.sqrt(200)
    assert 0.75 < float(z.std()) < 1.3


def test_a_mutant_without_the_proposals_density_is_rejected():
    """The same check on weights p(x, z) that forget 1 / q(z | x)."""
    from pyro_vae.densities.particles import densities

    program = oracle("diagonal")
    program.guide_is_best()
    x = rows(program, 200)
    with torch.no_grad():
        d = densities(program, x, 2000, reparameterize=False)
    wrong = from_log_weights(d.log_p)
    z = (wrong.value - program.log_evidence(x).detach()) / wrong.standard_error
    assert abs(float(z.mean())) > 4.5


def test_evidence_is_a_lower_bound_that_tightens_with_k():
    """Fact 34: E log mean w rises with K and stays below log p(x); K = 1 is the ELBO."""
    program = oracle("diagonal")
    program.guide_is_best()
    x = rows(program, 400)
    exact = float(program.log_evidence(x).detach().mean())
    with pytest.warns(pv.PyroVaeWarning, match="there is no khat"):
        values = [pv.log_evidence(program, x, num_particles=k).mean() for k in (1, 10, 1000)]
    assert values[0] < values[1] < values[2] < exact + 0.01
    expected = float(elbo(program, x, num_particles=500).mean())
    assert values[0] == pytest.approx(expected, abs=0.15)


def test_memory_is_cut_into_pieces_that_change_nothing_but_the_noise():
    """A chunk of 7 rows and 64 particles gives the same numbers within their errors."""
    program = oracle("diagonal")
    program.guide_is_best()
    x = rows(program)
    small = pv.log_evidence(program, x, num_particles=1000, batch_size=7, max_elements=7 * 5 * 64)
    whole = pv.log_evidence(program, x, num_particles=1000)
    z = (small.value - whole.value) / (small.standard_error**2 + whole.standard_error**2).sqrt()
    assert float(z.abs().max()) < 4.5
    assert len(small.value) == 40


def test_quadrature_agrees_on_the_logistic_model():
    torch.manual_seed(0)
    program = logistic_lvm.build(6, latent_dim=2).double()
    x = (torch.rand(30, 6) < 0.5).double()
    evidence = pv.log_evidence(program, x, num_particles=4000)
    z = (evidence.value - program.log_evidence(x).detach()) / evidence.standard_error
    assert float(z.abs().max()) < 4.5


def test_evidence_is_per_datum():
    """Permuting rows of one chunk changes nothing beyond the noise; a bad datum stays alone."""
    program = oracle("diagonal")
    program.guide_is_best()
    x = rows(program)
    far = x.clone()
    far[7] += 3.0
    one, two = (pv.log_evidence(program, each, num_particles=200) for each in (x, far))
    others = torch.arange(40) != 7
    torch.testing.assert_close(one.value[others], two.value[others], rtol=1e-9, atol=1e-9)
    assert abs(float(one.value[7] - two.value[7])) > 0.5


def test_a_bad_guide_is_called_bad():
    """A guide three times too narrow misses the tails: khat > 0.7 and a warning."""
    torch.manual_seed(0)
    narrow = bernoulli_vae.build(6, latent_dim=2, posterior_precision=200.0, hidden_dim=4)
    x = (torch.rand(20, 6) < 0.5).float()
    with (
        pytest.warns(pv.PyroVaeWarning, match="log p\\(x\\) still rises with the number of draws"),
        pytest.warns(pv.PyroVaeWarning, match=r"khat exceeds 0.7 for \d+ of 20"),
    ):
        evidence = pv.log_evidence(narrow, x, num_particles=500)
    assert (evidence.khat > 0.7).any()


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.5, 1.0])
def test_khat_is_arvizs(shape):
    """Column by column the same number as ArviZ's psislw on the same log weights."""
    psislw = getattr(az, "psislw", None)
    if psislw is None:
        pytest.skip("this ArviZ has no psislw at its top level")
    generator = np.random.default_rng(0)
    log_w = np.log(stats.genpareto.rvs(shape, size=(2000, 5), random_state=generator))
    ours = pareto_khat(torch.from_numpy(log_w))
    theirs = np.array([float(psislw(column.copy())[1]) for column in log_w.T])
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-6)


def test_khat_recovers_the_shape_and_never_pools_rows():
    """Shapes 0.2 and 1.0 side by side keep their own; a batch is no bigger sample (T5)."""
    generator = np.random.default_rng(1)
    columns = [stats.genpareto.rvs(k, size=20_000, random_state=generator) for k in (0.2, 1.0)]
    khat = pareto_khat(torch.from_numpy(np.log(np.stack(columns, 1))))
    assert abs(float(khat[0]) - 0.2) < 0.15
    assert abs(float(khat[1]) - 1.0) < 0.15


def test_too_few_particles_have_no_tail():
    assert pareto_khat(torch.randn(10, 3)).isnan().all()


def test_the_standard_error_is_the_delta_methods():
    """Against the spread of 2,000 repetitions at K = 50."""
    log_w = 0.5 * torch.randn(50, 2000, dtype=torch.float64)
    evidence = from_log_weights(log_w)
    assert float(evidence.value.std()) == pytest.approx(
        float(evidence.standard_error.square().mean().sqrt()), rel=0.1
    )


def test_the_elbo_is_the_closed_form_on_average():
    program = oracle("diagonal")
    program.guide_is_best()
    x = rows(program, 20)
    many = x.repeat(40, 1)  # equal rows have draws of their own
    draws = torch.stack([elbo(program, many, seed=s).detach() for s in range(10)]).view(400, 20)
    gap = draws.mean(0) - program.elbo(x).detach()
    assert float((gap / (draws.std(0) / 20)).abs().max()) < 4.5


def test_a_global_latent_has_no_evidence_per_datum():
    def model(x):
        m = pyro.sample("m", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0).expand([3]).to_event(1), obs=x)

    def guide(x):
        pyro.sample("m", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    program = pv.Program(model, guide)
    pv.fit(program, torch.zeros(4, 3), steps=1)
    with pytest.raises(ValueError, match=r'"m" is outside .* all data share it'):
        pv.log_evidence(program, torch.zeros(4, 3), num_particles=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method is 'magic'"),
        ({"proposal": "prior"}, 'proposal is \'prior\', expected "guide" or "hmc"'),
        ({"num_particles": 0}, "num_particles is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_impossible_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        pv.log_evidence(oracle(), torch.zeros(2, 5), **options)


FEW = {"num_draws": 40, "warmup": 20, "chains": 2, "num_particles": 100}
WAYS = {
    "importance": {"num_particles": 100, "batch_size": 10},
    "hmc": {"proposal": "hmc", **FEW},
    "annealed": {"method": "annealed", "num_temperatures": 8, "chains": 2},
}


@pytest.mark.filterwarnings("ignore::pyro_vae.errors.PyroVaeWarning")  # these are short runs
@pytest.mark.parametrize("way", WAYS)
def test_compiled_evaluation_gives_the_same_numbers(way, monkeypatch):
    """Whether it pays is one question, what it says another: here it is made to pay."""
    from pyro_vae.graphs import compiling

    program = linear_gaussian.build(3, latent_dim=2).double()
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = pv.log_evidence(program, x, seed=1, **WAYS[way])
    made = []

    def machine_code(*args, make=compiling.machine_code, **options):
        made.append(make(*args, **options))
        return made[-1]

    monkeypatch.setattr(compiling, "_gain", lambda graph, runs: float(runs))
    monkeypatch.setattr(compiling, "machine_code", machine_code)
    found = pv.log_evidence(program, x, seed=1, **WAYS[way])
    assert len(made) == 1 and not isinstance(made[0], Refusal)
    torch.testing.assert_close(found.value, plain.value, rtol=1e-9, atol=1e-9)
