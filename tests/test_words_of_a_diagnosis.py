"""Each sentence of a diagnosis is true: of few data, few draws, sorted covariates, tied values."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.calibration import Ranks, simulate
from pyro_vae.diagnostics import report
from pyro_vae.diagnostics.calibrated import Calibration
from pyro_vae.diagnostics.gaps import Gaps
from pyro_vae.diagnostics.latents import profile
from pyro_vae.diagnostics.misspecification import misspecification, of_log_evidence
from pyro_vae.diagnostics.predictive_checks import Check, PredictiveChecks
from pyro_vae.diagnostics.reliability import Reliability, Sandwich, sandwich
from pyro_vae.diagnostics.tables import data_table, latent_table
from pyro_vae.evidence.weights import Evidence, from_log_weights
from pyro_vae.models import linear_gaussian
from pyro_vae.program.rows import as_many_rows

QUICK = {"num_particles": 50, "num_simulations": 100, "num_draws": 19, "num_close": 4}


def oracle(dim=3):
    torch.manual_seed(1)
    program = linear_gaussian.build(dim, latent_dim=1, posterior="full")
    program.guide_is_exact_posterior()
    return program


def test_gaps_name_data_by_their_own_numbers(monkeypatch):
    def made(program, x, **options):
        n = torch.zeros(4).double()
        late = torch.tensor([0.0, 0, 0.2, 0]).double()
        khat = torch.tensor([0.0, 0.9, 0, torch.nan]).double()
        return Gaps(n + late, n + 2, n, n, n, n, n, khat, late)

    monkeypatch.setattr(report, "gaps", made)
    found = report._gaps(oracle(), torch.zeros(4, 3), torch.tensor([5, 17, 40, 99]))
    family, network = (finding.text for finding in found.findings())
    assert "(datum 40)" in family and "for 2 data (17, 99)" in family
    assert "for 1 data (40)" in network and "4 of 4 data, 5, 17, 40, 99" in network


def test_no_khat_is_not_a_large_one():
    evidence = from_log_weights(torch.randn(9, 30).double())
    (first, distance) = Reliability(evidence, evidence.value - 1).findings()
    assert first.verdict == "note" and "30 of 30 data have no khat" in first.text
    assert "exceeds" not in first.text and "nan" not in first.text + distance.text


def test_one_datum_is_diagnosed(monkeypatch):
    def refuse(*args, **options):
        raise ValueError("not here")

    monkeypatch.setattr(report, "sandwich", refuse)  # they take their time
    monkeypatch.setattr(report, "gaps", refuse)
    x = simulate(oracle(), 1, like=torch.zeros(2, 3)).x
    found = pv.diagnose(oracle(), x, **QUICK, progress=False)
    assert "nan" not in str(found) and "collapsed" not in str(found)
    assert found.clean, str(found)
    assert "of the questions were not answered" in str(found).replace("\n", " ")
    repr(found)


def test_chains_that_have_not_met_are_no_good_sign():
    n = torch.zeros(20).double()
    bounds = Evidence(n, n, n, n, n, n + 0.01, torch.where(torch.arange(20) < 9, 3.0, 1.0))
    (finding,) = Sandwich(torch.arange(20), bounds, n, False).findings()
    assert finding.verdict == "note" and "those of 9 have not" in finding.text
    (finding,) = Sandwich(torch.arange(20), bounds._replace(rhat=n + 1), n, False).findings()
    assert finding.verdict == "good"


def test_bounds_of_the_information_are_told_as_bounds():
    pairs = simulate(oracle(), 1000, like=torch.zeros(2, 3))
    exact = profile(oracle(), pairs.x, pairs.latents)
    assert "about as many nats about x as the rate" in exact.findings()[1].text
    few = profile(oracle(), pairs.x[:20] + 5, pairs.latents).findings()[1].text
    assert "at least" in few and "of 20 data from the prior" in few


def test_the_information_is_of_any_data_and_not_of_the_first():
    """Sorted by what z says: the first data are all alike."""
    pairs = simulate(oracle(), 2000, like=torch.zeros(2, 3))
    mean = oracle().posterior(pairs.x).mean[:, 0].detach()
    ordered = profile(oracle(), pairs.x[mean.argsort()], pairs.latents)
    mixed = profile(oracle(), pairs.x, pairs.latents)
    assert abs(ordered.information[0] - mixed.information[0]) < 4 * mixed.information[1]


@pytest.mark.parametrize(("number", "count"), [(7, 3), (7, 7), (7, 25), (1, 4)])
def test_rows_stand_in_equally_often(number, count):
    often = as_many_rows(number, count, 0).bincount(minlength=number)
    assert int(often.sum()) == count and int(often.max() - often.min()) <= 1


def test_what_is_left_over_is_not_the_first_rows():
    assert as_many_rows(1000, 300, 0).double().mean() > 400
    assert not torch.equal(as_many_rows(1000, 300, 0), as_many_rows(1000, 300, 1))


class Scaled(pv.Program):
    """x ~ N(0, s(t)^2 + 1) with a covariate t, which decides how large log p(x) is."""

    def __init__(self):
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros(()))

    def model(self, x, t):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.zero, t))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x, t):
        gain = t**2 / (t**2 + 1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(gain * x + self.zero, gain.sqrt()))


def test_sorted_covariates_are_no_misspecification():
    t = torch.cat([torch.full((200,), 0.1), torch.full((100,), 100.0)])
    p_values = []
    for seed in range(5):
        x = simulate(Scaled(), 300, like={"x": torch.zeros(300), "t": t}, seed=seed).x
        found = misspecification(Scaled(), x, num_particles=10, seed=seed, progress=False)
        p_values.append(found.uniformity)
        assert len(found.simulated) == 600
    assert min(p_values) > 0.01


def test_a_common_value_is_not_strange():
    """Of a coin log p(x) has two values, and each is as probable as itself."""
    value = torch.tensor([0.4, 0.6]).double().log()
    own = value[(torch.arange(500) < 300).long()]
    found = of_log_evidence(value, own)
    assert found.p_value.tolist() == pytest.approx([2 * 201 / 501, 1.0], abs=0.01)


def test_a_distance_below_its_noise_is_told_as_none():
    n = torch.zeros(30).double()
    value = torch.linspace(-0.1, 0.09, 30).double()
    evidence = Evidence(value, n, n + 50, n, value, n, n)
    text = Reliability(evidence, n).findings()[1].text
    assert "cannot be told from the posterior" in text and "is -0.005 ± 0.011" in text
    text = Reliability(evidence._replace(value=value + 1), n).findings()[1].text
    assert text.startswith("The guide is 0.995 ± 0.011 nats a datum from the posterior (")


def test_a_wrong_guide_may_be_why_replicates_differ():
    p = torch.linspace(5, 6, 600)
    check = Check("x", "mean", 0.0, p, 5.0, 6.0, 0.001)
    (finding,) = PredictiveChecks("posterior", (check,), 0.01).findings()
    assert finding.verdict == "bad" and "Their latents are the guide's" in finding.text
    (finding,) = PredictiveChecks("prior", (check,), 0.01).findings()
    assert finding.verdict == "bad" and "guide" not in finding.text


def test_gaps_stand_in_the_table_without_bounds():
    n = torch.ones(2).double()
    gaps = Gaps(n, 2 * n, n, n, n, n, n, n, n, torch.tensor([1, 3]))
    evidence = from_log_weights(torch.randn(9, 4).double())
    trust = Reliability(evidence, evidence.value)
    table = data_table({"weights": trust, "log p(x)": None, "gaps": gaps})
    assert table["amortization_gap"].dropna().to_dict() == {1: 2.0, 3: 2.0}


def test_draws_that_are_all_one_value_have_no_z_score():
    one = {"k": np.zeros(20)}
    ranks = Ranks({"k": np.arange(20)}, 19, one, one, one, {"k": True})
    table = latent_table({"calibration": Calibration(ranks, 0.01)})
    assert np.isnan(table.loc["k", "z_score_mean"]) and np.isnan(table.loc["k", "z_score_sd"])


class Switch(pv.Program):
    """k = 0 or 1 with even odds, x ~ N(5 k, 1); a guide that never draws 1."""

    def __init__(self):
        super().__init__()
        self.place = torch.nn.Parameter(torch.tensor(5.0))

    def model(self, x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(self.place * k, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(torch.full_like(x, 1e-6) + 0 * self.place))


@pytest.mark.parametrize("latents", [None, {"k": torch.ones(4)}])
def test_a_value_that_the_guide_never_draws_is_missed(latents):
    x = torch.tensor([0.0, 5.0, 4.0, 6.0])
    first, other = (dist.Normal(place, 1.0).log_prob(x) + np.log(0.5) for place in (0.0, 5.0))
    index, never = torch.tensor([2, 5, 7, 9]), first.double()
    options = {"latents": latents, "seed": 0, "progress": False}
    found = sandwich(Switch(), x, index, never, **options)
    exact = torch.logaddexp(first, other).double()
    torch.testing.assert_close(found.bounds.lower, exact, rtol=0, atol=1e-5)
    (finding,) = found.findings()
    assert finding.verdict == "bad" and "summed over the latents' values" in finding.text
    assert ("most at 9, 5, 7" in finding.text) == (latents is None)  # of the user's own data
