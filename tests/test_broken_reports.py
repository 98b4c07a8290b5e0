"""Files that trackers and reports go on with, or are to write."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import pyro_vae as pv
from pyro_vae.training import CSVTracker


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xfe\x00"])
def test_a_table_that_is_none_of_ours_is_not_gone_on_with(tmp_path, content):
    path = tmp_path / "curve.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"curve\.csv (is no table|has no column samples)"):
        CSVTracker(path, append=True)
    assert path.read_bytes() == content
    with pytest.raises(IsADirectoryError, match="is a folder"):
        CSVTracker(tmp_path, append=True)


def test_a_report_counts_rows_and_not_the_entries_of_a_tuple(tmp_path):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(30, 3)).astype("float32"))
    vae = pv.VAE.build(
        x, latent_dim=1, hidden_dim=2, likelihood=pv.likelihoods.Gaussian(sigmoid_mean=False)
    )
    for data in ((x,), TensorDataset(x)):
        page = pv.report(vae, data, tmp_path / "page.html", diagnosis="none")
        assert "<dd>30 held-out rows" in page.read_text(encoding="utf8")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("length", [255, 300, 5000])
def test_a_name_that_is_too_long_is_said_before_any_work(tmp_path, length):
    with pytest.raises(ValueError, match="cannot be written"):
        pv.report(None, out=tmp_path / ("x" * length))
    for folder in ("", ".", tmp_path):
        with pytest.raises(ValueError, match="is a folder"):
            pv.report(None, out=folder)
