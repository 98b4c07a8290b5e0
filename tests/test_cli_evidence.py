"""``pyro-vae evidence`` with each of its methods."""

import pandas as pd
import pytest

from pyro_vae.cli import main

LG = ["evidence", "linear_gaussian", "--model.latent_dim", "2", "--num_data", "5"]


def said(capsys, *arguments):
    assert main([*LG, *arguments]) == 0
    return capsys.readouterr()


def test_both_bounds_are_told_in_words(tmp_path, capsys):
    few = ["--num_temperatures", "30", "--chains", "8", "--out", str(tmp_path)]
    out = said(capsys, "--method", "sandwich", *few).out
    assert "sandwich, annealed from the guide and back from the ends of HMC chains" in out
    assert "at least -" in out and "lower bound, in expectation" in out
    assert "at most  -" in out and "upper bound, if the chains have converged" in out
    assert "between them" in out
    table = pd.read_csv(tmp_path / "evidence.csv", index_col="datum")
    assert len(table) == 5 and table.lower.notna().all() and table.upper.notna().all()


@pytest.mark.parametrize("method", ["annealed", "exact", "quadrature"])
def test_every_method_has_a_line(method, capsys):
    few = ["--num_temperatures", "20"] if method == "annealed" else []
    captured = said(capsys, "--method", method, *few)
    assert "nats per datum" in captured.out and f"({method}" in captured.out
    assert "Traceback" not in captured.err
    assert ("ESS" in captured.out) == (method == "annealed")


def test_a_proposal_that_does_not_fit_is_one_line(capsys):
    assert main([*LG, "--method", "annealed", "--proposal", "hmc"]) == 2
    assert 'expected "guide" or "prior"' in capsys.readouterr().err
