"""Heavy tails in the laboratory: what its errors cover, and that the report says where they do not.

Draws of known laws go through the laboratory's own blocks.
"""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.diagnostics import pareto_khat
from pyro_vae.gradients.lab import BLOCKS, Lab
from pyro_vae.gradients.moments import chance, moments
from pyro_vae.models import linear_gaussian
from pyro_vae.objectives import AEVB, ScoreFunction, StickingTheLanding

PARTS, DRAWS, TIMES = {"all": ["w"]}, 1000, 200
LAWS = {  # name: draws, mean, variance
    "normal": (lambda rng, size: rng.normal(size=size), 0.0, 1.0),
    "t5": (lambda rng, size: rng.standard_t(5, size=size), 0.0, 5 / 3),
    "t2.5": (lambda rng, size: rng.standard_t(2.5, size=size), 0.0, 5.0),
    "log-normal": (
        lambda rng, size: rng.lognormal(0, 1.5, size=size),
        np.exp(1.125),
        (np.exp(2.25) - 1) * np.exp(2.25),
    ),
}


class Given(Lab):
    """A laboratory whose gradients are given: (draws, parameters)."""

    def __init__(self, gradients):
        self.gradients, self.count = torch.as_tensor(gradients), 1.0
        self.weight = torch.ones(1, dtype=torch.float64)

    def _batched(self, start, count):
        return {"w": self.gradients[start : start + count]}

    def _at_once(self, size):
        return size


def drawn(gradients):
    return Given(gradients).draw(len(gradients), PARTS, lambda: None)


def measured(law, parameters=1):
    """Rows of the report for draws of a law, against a reference without noise at its mean."""
    rng = np.random.default_rng(0)
    draw, mean, _ = LAWS[law]
    reference = drawn(np.full((DRAWS, parameters), mean))
    rows = []
    for _ in range(TIMES):
        rows.append(moments(drawn(draw(rng, (DRAWS, parameters))), reference, "all"))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def rows():
    return {law: measured(law) for law in LAWS}


def covered(rows, law):
    errors = rows[law]["variance_standard_error"]
    return np.mean(abs(rows[law]["variance"] - LAWS[law][2]) < 2 * errors)


def test_errors_cover_where_tails_are_light(rows):
    assert covered(rows, "normal") > 0.91
    assert covered(rows, "t5") > 0.87
    assert np.mean(rows["normal"]["khat"] > 0.5) < 0.01


@pytest.mark.parametrize("law", ["t2.5", "log-normal"])
def test_errors_do_not_cover_under_heavy_tails_and_the_report_says_so(rows, law):
    """The mutant, a tail of distances that are not squared, sees half the shape, and too little."""
    assert covered(rows, law) < 0.75
    assert np.mean(rows[law]["khat"] > 0.5) > 0.9
    rng, draw = np.random.default_rng(0), LAWS["t2.5"][0]
    plain = [float(pareto_khat(torch.tensor(abs(draw(rng, (DRAWS, 1)))).log())) for _ in range(50)]
    assert np.mean(np.array(plain) > 0.5) < 0.5


def test_the_signal_of_heavy_tails_is_too_high(rows):
    right = LAWS["log-normal"][1] / LAWS["log-normal"][2] ** 0.5
    assert np.median(rows["log-normal"]["snr"]) > 1.1 * right


def test_bias_p_of_one_skewed_parameter_is_too_small_and_flagged():
    """Below 0.01 three times as often as it should be; a t distribution's is right."""
    rng, shares = np.random.default_rng(0), {}
    for law in ("t5", "log-normal"):
        draw, mean, _ = LAWS[law]
        reference = drawn(np.full((DRAWS, 1), mean))
        small = []
        for gradients in draw(rng, (2000, DRAWS, 1)):
            blocks = (gradients - mean).reshape(BLOCKS, -1).mean(1, keepdims=True)
            if chance(blocks @ blocks.T, 1) < 0.01:
                row = moments(drawn(gradients), reference, "all")
                assert row["bias_p"] < 0.01
                small.append(row["khat"] > 0.5)
        shares[law] = len(small) / 2000
    assert shares["t5"] < 0.017 < 0.02 < shares["log-normal"]
    assert all(small)


def test_distances_are_from_the_mean_of_the_blocks_before():
    gradients = np.random.default_rng(0).normal(size=(75, 4))
    found = drawn(gradients).distances["all"]
    expected = [((gradients[i] - gradients[: i // 3 * 3].mean(0)) ** 2).sum() for i in range(3, 75)]
    np.testing.assert_allclose(found, expected)


def test_draws_without_noise_have_no_tail():
    constant = drawn(np.ones((50, 3)))
    assert np.isnan(moments(constant, constant, "all")["khat"])
    rounded = drawn(1e-15 * np.random.default_rng(0).integers(0, 2, (50, 3)))
    assert np.isnan(moments(rounded, constant, "all")["khat"])


def test_a_bias_that_is_rounding_has_no_small_p():
    gradients = 1 + np.random.default_rng(0).normal(size=(50, 1))
    row = moments(drawn(gradients * (1 + 1e-17) - 1e-17), drawn(gradients), "all")
    shifted = moments(drawn(gradients + 1e-16), drawn(gradients), "all")
    assert (row["bias"], row["bias_p"]) == (shifted["bias"], shifted["bias_p"]) == (0.0, 1.0)


class Wide(pv.Program):
    """Three degrees of freedom for the latent, whose third power is the mean of x."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.StudentT(torch.tensor(3.0, dtype=torch.float64), 0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None] ** 3, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.StudentT(torch.tensor(3.0, dtype=torch.float64), self.mean, 1.0))


def test_table_words_and_picture_say_it(tmp_path):
    """log p(x | z) grows as z^6 under draws that have no third moment."""
    x = torch.ones(1, 1, dtype=torch.float64)
    report = pv.gradient_report(
        Wide(), x, [AEVB("A"), ScoreFunction()], num_draws=500, progress=False
    )
    assert (report.table()["khat"] > 0.5).all()
    assert "khat > 0.5: heavy tails" in repr(report)
    figure = report.plot(tmp_path / "heavy.png")
    assert "hollow: heavy tails" in figure.axes[1].get_xlabel()
    dots = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert dots and all(line.get_markerfacecolor() == "white" for line in dots)


def test_a_quiet_report_does_not():
    model = linear_gaussian.build(3, latent_dim=2)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    report = pv.gradient_report(
        model, x, [AEVB(), StickingTheLanding()], num_draws=500, progress=False
    )
    assert (report.table()["khat"] < 0.5).all()
    assert "heavy" not in repr(report)
