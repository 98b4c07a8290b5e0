"""`pyro-vae report`: mistakes are a line that says what to do."""

import pytest

from pyro_vae import errors
from pyro_vae.cli import main


def test_a_folder_of_neither_kind_is_told_of_both(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "neither checkpoint.json" in said and "comparison.nc" in said and said.count("\n") == 1


def test_a_number_that_no_tensor_counts_to_is_told_its_limit():
    with pytest.raises(ValueError, match=r"from 1 on, below 2\*\*63"):
        errors.whole("budget", 1e99)
    assert errors.whole("budget", 2**63 - 1) == 2**63 - 1
