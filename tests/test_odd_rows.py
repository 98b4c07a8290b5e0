"""Rows that are not what a program takes: few, of another type or width, or of one dimension."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.models import linear_gaussian

QUICK = {"num_particles": 50, "num_simulations": 40, "num_close": 1, "progress": False}
ASKED = {
    "log_evidence": pv.log_evidence,
    "refine": pv.refine,
    "summarize": pv.summarize,
    "to_inference_data": pv.to_inference_data,
    "diagnose": lambda program, x: pv.diagnose(program, x, **QUICK),
    "encode": pv.encode,
    "reconstruct": pv.reconstruct,
}


@pytest.fixture(scope="module")
def exact():
    program = linear_gaussian.build(4, latent_dim=2, posterior="full")
    program.guide_is_exact_posterior()
    return program


@pytest.mark.parametrize("call", ASKED)
@pytest.mark.parametrize(
    "x, said",
    [
        (torch.ones(5, 4, dtype=torch.int64), r"guide\(x\) fails .*torch.int64.*pass x.float\(\)"),
        (torch.ones(5, 3), r"guide\(x\) fails on a batch of shape \(5, 3\)"),
    ],
    ids=["integers", "width"],
)
def test_rows_that_a_network_cannot_take_are_refused_in_words(exact, call, x, said):
    with pytest.raises(ValueError, match=said):
        ASKED[call](exact, x)


def test_a_vector_is_no_data_of_which_latents_are_summarized(exact):
    with pytest.raises(ValueError, match="observed shape"):
        pv.summarize(exact, torch.zeros(4), progress=False)


def test_what_needs_several_data_is_not_answered_of_one(exact):
    few = QUICK | {"num_particles": 20, "num_simulations": 20}
    said = str(pv.diagnose(exact, torch.zeros(1, 4), **few))
    assert re.search(r"latents +not answered: x is 1 datum, expected two or more", said)
    assert "nan" not in said


@pytest.mark.parametrize("width", [1, 2])
def test_one_datum_is_checked_against_replicates(width):
    x = torch.tensor([[0.3, -0.4]])[:, :width]
    program = linear_gaussian.build(width, latent_dim=1, posterior="full")
    program.guide_is_exact_posterior()
    from pyro_vae.diagnostics.predictive_checks import predictive_checks

    found = predictive_checks(program, x, progress=False)
    assert all(check.p_value > 0.01 for check in found.checks)


@pytest.mark.filterwarnings("ignore::pyro_vae.cli.telling.Note")
def test_a_file_too_short_to_be_split_is_refused_in_terms_of_the_command_line(tmp_path):
    import numpy as np

    from pyro_vae.cli.sources import open_data

    np.save(tmp_path / "short.npy", np.zeros((5, 3), "float32"))
    with pytest.raises(ValueError, match=r"short\.npy: 5 rows, expected 6 or more"):
        open_data(str(tmp_path / "short.npy"))
    np.save(tmp_path / "enough.npy", np.zeros((6, 3), "float32"))
    assert len(open_data(str(tmp_path / "enough.npy")).test) == 1


@pytest.mark.parametrize(
    "option, said",
    [
        ({"num_simulations": -3}, "num_simulations is -3"),
        ({"num_draws": 0}, "num_draws is 0"),
        ({"num_particles": 0}, "num_particles is 0"),
        ({"quantities": {"a": 1}}, 'quantities has "a", int, expected a function'),
        ({"statistics": [torch.mean]}, "statistics is list, expected a dict"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_options_of_a_diagnosis_are_looked_at_before_any_work(exact, option, said):
    def fails(record):
        raise AssertionError("work has begun")

    with pytest.raises((ValueError, TypeError), match=said):
        pv.diagnose(exact, torch.zeros(3, 4), **{**QUICK, **option, "progress": fails})


def test_programs_of_two_precisions_are_compared_on_the_same_rows(exact):
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other = linear_gaussian.build(4, latent_dim=1).double()
    found = {
        "single": pv.log_evidence(exact, x, method="exact"),
        "double": pv.log_evidence(other, x, method="exact"),
    }
    assert len(pv.compare_evidence(found)) == 2
    moved = pv.log_evidence(other, x + 1e-3, method="exact")
    with pytest.raises(ValueError, match="different data"):
        pv.compare_evidence({**found, "double": moved})


class Point(torch.nn.Module):
    """A guide that is a point, as of a standard auto-encoder."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(4, 2), torch.nn.Linear(2, 4)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(self.encoder(x), event_dim=1))


def test_a_guide_that_is_a_point_is_diagnosed_without_numbers_that_it_has_not(exact):
    torch.manual_seed(0)
    program = pv.Program(Point())
    found = pv.diagnose(program, torch.randn(6, 4), **QUICK)
    said = {finding.question: finding for finding in found.findings}
    assert "infinite" in said["information"].text
    assert said["calibration"].verdict == "bad" and "times" not in said["calibration"].text
    assert found.table()["z_score_sd"].isna().all()


def test_too_few_simulations_for_a_test_of_ranks_are_refused(exact):
    with pytest.raises(ValueError, match="num_simulations is 19, expected a whole number from 20"):
        pv.diagnose(exact, torch.zeros(3, 4), **{**QUICK, "num_simulations": 19})
