"""Predictive checks and misspecification: what they find, and that a true model passes."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.diagnostics.misspecification import (
    _attained,
    _chance,
    misspecification,
    of_log_evidence,
)
from pyro_vae.diagnostics.predictive_checks import FEATURES, FREQUENCIES, predictive_checks
from pyro_vae.models import linear_gaussian

QUIET = {"progress": False}


class One(pv.Program):
    """z ~ N(0, 1) and a law of x given z, with the guide N(0, 1)."""

    def __init__(self, law, event=1, given=None):
        super().__init__()
        self.law, self.event, self.place = law, event, nn.Parameter(torch.zeros(()))

    def model(self, x):
        rows = x["x"] if isinstance(x, dict) else x
        with pyro.plate("data", len(rows)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(rows)), 1.0))
            law = self.law(z).to_event(self.event)
            if isinstance(x, dict):
                law = self.law(z).mask(x["seen"]).to_event(self.event)
            pyro.sample("x", law, obs=rows)

    def guide(self, x):
        rows = x["x"] if isinstance(x, dict) else x
        with pyro.plate("data", len(rows)):
            pyro.sample("z", dist.Normal(self.place.expand(len(rows)), 1.0))


def wide(z, features=4):
    return z.unsqueeze(-1).expand(-1, features)


def by_name(found):
    return {check.statistic: check for check in found.checks}


def test_data_of_the_model_pass_and_wider_ones_do_not():
    torch.manual_seed(0)
    program = One(lambda z: dist.Normal(wide(z), 0.5))
    x = torch.randn(80, 1) + 0.5 * torch.randn(80, 4)

    for source in ("prior", "posterior"):
        good = predictive_checks(program, x, source=source, num_replicates=250, **QUIET)
        bad = predictive_checks(program, 1.5 * x, source=source, num_replicates=250, **QUIET)

        assert good.findings()[0].verdict == "good"
        assert bad.findings()[0].verdict == "bad"
        assert "sd of" in bad.findings()[0].text
        assert by_name(bad)["sd"].p_value == pytest.approx(2 / 251)
        assert bad.findings()[0].level == 0.05
    assert "conservative" in good.findings()[0].text
    assert set(by_name(good)) == {"mean", "sd", "least", "largest", FEATURES}
    # of 250 sets of 80 rows
    assert by_name(good)["mean"].replicated.std() == pytest.approx((1.0625 / 80) ** 0.5, rel=0.2)


def test_a_feature_that_is_off_is_named():
    torch.manual_seed(1)
    program = One(lambda z: dist.Normal(wide(z, 30), 0.5))
    x = 0.3 * torch.randn(60, 1) + 0.5 * torch.randn(60, 30)
    x[:, 17] += 1.0

    found = predictive_checks(program, x, num_replicates=250, **QUIET)

    assert by_name(found)[FEATURES].outside == (17,)
    assert "1 outside their band: 17" in str(by_name(found)[FEATURES])
    assert by_name(found)[FEATURES].p_value == pytest.approx(1 / 251)


def test_counts_with_too_many_zeros_are_found():
    torch.manual_seed(3)
    program = One(lambda z: dist.Poisson((1 + 0 * wide(z)) * 2.0))
    x = torch.poisson(torch.full((100, 4), 2.0))

    good = predictive_checks(program, x, num_replicates=250, **QUIET)
    many = predictive_checks(program, x * (torch.rand_like(x) > 0.3), num_replicates=250, **QUIET)

    assert good.findings()[0].verdict == "good"
    table = by_name(many)
    assert table["share of zeros"].p_value < 0.01
    assert table["variance over mean"].observed > table["variance over mean"].high
    assert by_name(good)["variance over mean"].mean == pytest.approx(1.0, abs=0.02)
    assert by_name(good)["coefficient of variation"].mean == pytest.approx(0.5**0.5, abs=0.02)
    assert by_name(good)["share of zeros"].mean == pytest.approx(math.exp(-2), abs=0.01)


def test_zeros_and_ones_have_the_spread_of_their_rows():
    """Rows that hang together have the same mean, and another spread."""
    torch.manual_seed(3)
    program = One(lambda z: dist.Bernoulli(0.5 + 0 * wide(z, 20)))
    x = (torch.rand(100, 1) < 0.5).float().expand(100, 20).contiguous()

    found = by_name(predictive_checks(program, x, num_replicates=250, **QUIET))

    assert set(found) == {"mean", "sd of row means", FEATURES}
    assert found["sd of row means"].p_value < 0.01
    assert found["sd of row means"].mean == pytest.approx((0.25 / 20) ** 0.5, rel=0.05)


def test_categories_are_counted():
    torch.manual_seed(4)
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    program = One(lambda z: dist.Categorical(logits=logits.expand(len(z), 3)), event=0)
    x = dist.Categorical(logits=logits).sample((200,))

    good = predictive_checks(program, x, num_replicates=250, **QUIET)
    bad = predictive_checks(program, (x + 1) % 3, num_replicates=250, **QUIET)

    assert good.findings()[0].verdict == "good"
    assert bad.findings()[0].verdict == "bad"
    assert [check.statistic for check in bad.checks] == [FREQUENCIES]
    assert {0, 1} <= set(by_name(bad)[FREQUENCIES].outside) <= {0, 1, 2}


def test_what_is_masked_is_left_out_of_both_sides():
    torch.manual_seed(5)
    program = One(lambda z: dist.Normal(wide(z), 0.5))
    x = torch.randn(80, 1) + 0.5 * torch.randn(80, 4)
    seen = torch.rand(80, 4) < 0.7
    data = {"x": torch.where(seen, x, 1e4), "seen": seen}

    def least(x):
        assert int(x.isnan().sum()) == int((~seen).sum())
        return x.nan_to_num(math.inf).min()

    found = predictive_checks(
        program, data, num_replicates=300, statistics={"my least": least}, **QUIET
    )

    assert found.findings()[0].verdict == "good"
    table = by_name(found)
    assert table["largest"].observed < 10
    assert table["largest"].replicated.max() < 10
    assert table["my least"].observed == pytest.approx(table["least"].observed)
    torch.testing.assert_close(table["my least"].replicated, table["least"].replicated)


def test_statistics_of_the_users_own_are_numbers():
    program, x = One(lambda z: dist.Normal(wide(z), 0.5)), torch.randn(20, 4)
    own = {"corr": lambda x: torch.corrcoef(x.T)[0, 1]}
    found = predictive_checks(program, x, statistics=own, num_replicates=250, **QUIET)
    assert by_name(found)["corr"].p_value < 0.05  # z makes them 0.8
    assert by_name(found)["corr"].mean == pytest.approx(0.8, abs=0.05)

    for bad in (lambda x: x.mean(0), lambda x: math.nan):
        with pytest.raises(ValueError, match=r'statistic "bad".*one number'):
            predictive_checks(program, x, statistics={"bad": bad}, num_replicates=250, **QUIET)
    with pytest.raises(ValueError, match="num_replicates is 20, expected at least 200"):
        predictive_checks(program, x, num_replicates=20, **QUIET)
    with pytest.raises(ValueError, match="source is 'both'"):
        predictive_checks(program, x, source="both", **QUIET)


def test_checks_move_nothing():
    program = One(lambda z: dist.Normal(wide(z), 0.5)).train()
    x, before = torch.randn(10, 4), program.place.detach().clone()
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    one = predictive_checks(program, x, num_replicates=250, **QUIET)
    misspecification(program, x, num_simulated=50, num_particles=50, **QUIET)
    two = predictive_checks(program, x, num_replicates=250, **QUIET)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(program.place, before)
    assert program.training
    assert [c.p_value for c in one.checks] == [c.p_value for c in two.checks]


# --- misspecification -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact():
    torch.manual_seed(8)
    program = linear_gaussian.build(4, latent_dim=2, posterior="full").double()
    program.guide_is_exact_posterior()
    return program, pv.sample(program, 200, like=torch.zeros(1, 4, dtype=torch.float64), seed=3)


def test_data_of_the_model_are_as_probable_as_its_own(exact):
    program, x = exact
    found = misspecification(program, x, num_particles=3, **QUIET)

    assert [each.verdict for each in found.findings()] == ["good", "good"]
    torch.testing.assert_close(found.log_evidence, program.log_evidence(x).detach())
    assert len(found.simulated) == 600  # a multiple of the data
    # of a normal law: the mean of log p(x) is minus its entropy
    covariance = program.weight @ program.weight.T + torch.eye(4)
    entropy = dist.MultivariateNormal(torch.zeros(4).double(), covariance.detach()).entropy()
    assert abs(float(found.simulated.mean() + entropy)) < 4 * (2 / 600) ** 0.5
    assert 0.02 < float((found.p_value < 0.1).double().mean()) < 0.2


def test_data_that_are_too_improbable_or_too_probable_are_found(exact):
    program, x = exact
    for factor in (1.4, 0.6):
        found = misspecification(program, factor * x, num_particles=3, **QUIET)
        assert found.findings()[0].verdict == "bad"
        assert found.uniformity < 1e-3
    assert found.findings()[1].verdict == "good"


def test_outliers_are_named(exact):
    program, x = exact
    strange = x.clone()
    strange[[11, 60, 61, 150]] += 8.0

    found = misspecification(program, strange, num_particles=3, **QUIET)

    assert sorted(found.strangest[:4]) == [11, 60, 61, 150]
    assert found.below >= 4
    assert found.findings()[1].verdict == "bad"
    assert all(f"{n}" in found.findings()[1].text for n in (11, 60, 61, 150))
    assert (found.p_value[[11, 60, 61, 150]] < 0.005).all()


def test_simulated_data_miss_what_the_data_miss():
    program = One(lambda z: dist.Normal(wide(z), 0.5))
    seen = torch.ones(100, 4, dtype=torch.bool)
    seen[:, 2] = False
    x = torch.randn(100, 1) + 0.5 * torch.randn(100, 4)
    data = {"x": torch.where(seen, x, 1e4), "seen": seen}

    found = misspecification(program, data, num_particles=2000, **QUIET)

    assert found.findings()[0].verdict == "good"
    law = dist.MultivariateNormal(torch.zeros(3), torch.ones(3, 3) + 0.25 * torch.eye(3))
    exact = law.log_prob(x[:, [0, 1, 3]]).double()
    torch.testing.assert_close(found.log_evidence, exact, atol=0.6, rtol=0)


def test_the_rate_of_outliers_by_chance_is_exact():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(20_000, 30 + 90, generator=generator)
    below = (numbers[:, :30] < numbers[:, 30:].amin(1, keepdim=True)).sum(1)
    for count in (1, 2, 3):
        share = float((below >= count).double().mean())
        expected = _chance(count, 30, 90)
        assert abs(share - expected) < 4 * (expected / 20_000) ** 0.5
    attained, least = _attained(30, 90, 0.05)
    assert attained == _chance(least, 30, 90) <= 0.05 < _chance(least - 1, 30, 90)


def test_ranks_of_one_law_pass_and_those_of_another_do_not():
    """With a biased estimator too, as long as it is the same for both."""
    generator = torch.Generator().manual_seed(1)
    data, model = torch.randn(2, 400, generator=generator, dtype=torch.float64)
    assert of_log_evidence(data, model).findings()[0].verdict == "good"
    assert of_log_evidence(data - 0.5, model - 0.5).findings()[0].verdict == "good"
    assert of_log_evidence(data - 0.5, model).findings()[0].verdict == "bad"
