"""ArviZ: files that are written a batch of rows at a time, and what both lines of ArviZ do."""

import math
import warnings
from importlib.metadata import version

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import nn

import pyro_vae as pv
from pyro_vae.cli import main
from pyro_vae.inference_data import stores
from pyro_vae.inference_data.limits import mebibytes
from pyro_vae.models import bernoulli_vae, linear_gaussian

pytestmark = pytest.mark.filterwarnings("ignore:khat exceeds:pyro_vae.PyroVaeWarning")
AT_LEAST_1 = int(version("arviz").split(".")[0]) >= 1


def groups_of(result):
    names = result.children if isinstance(result, xr.DataTree) else result.groups()
    return {
        name: part.to_dataset() if isinstance(part := result[name], xr.DataTree) else part
        for name in names
    }


@pytest.fixture(scope="module")
def converted():
    torch.manual_seed(0)
    data = pv.datasets.load("digits")
    vae = bernoulli_vae.build(64, latent_dim=2, hidden_dim=4)
    run = pv.fit(vae, data.train[:100], steps=3, progress=False)
    options = dict(
        num_draws=30, chains=2, num_prior=4, batch_size=4, predictions=data.test[7:9],
        num_simulations=20, progress=False,
    )  # fmt: skip
    return run, data.test[:7], options, pv.to_inference_data(run, data.test[:7], **options)


def library(end):
    pytest.importorskip("zarr" if end == ".zarr" else "h5netcdf")


@pytest.mark.parametrize("end", [".nc", ".zarr"])
def test_a_file_holds_bit_for_bit_what_memory_does(converted, tmp_path, end):
    library(end)
    run, x, options, whole = converted
    path = tmp_path / f"posterior{end}"
    streamed = groups_of(pv.to_inference_data(run, x, **options, out=path))
    expected = groups_of(whole)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert list(streamed) == list(expected)
    for name, group in expected.items():
        xr.testing.assert_identical(streamed[name].load(), group)
        for variable in group.data_vars:
            assert streamed[name][variable].dtype == group[variable].dtype


@pytest.mark.parametrize("end", [".nc", ".zarr"])
def test_round_trips_by_the_installed_arviz(converted, tmp_path, end):
    library(end)
    whole, path = converted[-1], tmp_path / f"again{end}"
    if AT_LEAST_1:
        engine = "zarr" if end == ".zarr" else "h5netcdf"
        if end == ".zarr":
            whole.to_zarr(path, zarr_format=2, consolidated=True)
        else:
            whole.to_netcdf(path, engine=engine)
        read = xr.open_datatree(path, engine=engine)
    elif end == ".nc":
        whole.to_netcdf(str(path), engine="h5netcdf")
        read = az.from_netcdf(str(path), engine="h5netcdf")
    else:  # its own to_zarr knows zarr 2 alone, and sends one here
        whole.to_datatree().to_zarr(path, zarr_format=2, consolidated=True)
        read = xr.open_datatree(path, engine="zarr")
    again = groups_of(read)
    for name, group in groups_of(whole).items():
        xr.testing.assert_equal(again[name].load(), group)
    read.close()


def test_a_program_with_shared_latents_and_bits_goes_to_a_file_as_well(tmp_path):
    from pyro_vae.models import bayesian_vae

    program = bayesian_vae.build(4, num_data=9, latent_dim=2, hidden_dim=3, init_std=0.5)
    x = (torch.rand(9, 4) < 0.5).float()
    options = dict(num_draws=3, chains=1, num_prior=1, batch_size=5, progress=False)
    expected = groups_of(pv.to_inference_data(program, x, **options))
    path = tmp_path / "shared.nc"
    streamed = groups_of(pv.to_inference_data(program, x, **options, out=path))
    for name, group in expected.items():
        xr.testing.assert_identical(streamed[name].load(), group)


def test_a_failure_leaves_no_file_and_what_exists_is_not_lost(converted, tmp_path, monkeypatch):
    run, x, options, _ = converted
    path = tmp_path / "posterior.nc"

    def fail(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pv.to_inference_data(run, x, **{**options, "progress": fail}, out=path)
    assert not list(tmp_path.iterdir())
    path.write_text("mine")
    for out, message in (
        (path, "exists and would be lost"),
        (tmp_path / "a.txt", r"otherwise than in \.nc or \.zarr"),
        (tmp_path / "none" / "a.nc", "there is no folder"),
    ):
        with pytest.raises(ValueError, match=message):
            pv.to_inference_data(run, x, out=out)
    monkeypatch.setattr(stores.shutil, "disk_usage", lambda path: type("", (), {"free": 10}))
    with pytest.raises(ValueError, match="the result takes"):
        pv.to_inference_data(run, x, out=tmp_path / "b.nc")
    assert [p.name for p in tmp_path.iterdir()] == ["posterior.nc"]


def test_a_missing_library_is_named_before_anything_is_drawn(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ValueError, match="pip install zarr"):
        pv.to_inference_data(
            linear_gaussian.build(3, latent_dim=2), torch.zeros(2, 3), out=tmp_path / "a.zarr"
        )


def test_sizes_are_told_in_three_digits():
    told = [mebibytes(size) for size in (10, 1 << 16, 5 << 20, 1234 << 20, 6 << 30)]
    assert told == ["9.54e-06", "0.0625", "5", "1,234", "6,144"]


def test_a_file_may_be_larger_than_the_memory_that_is_allowed(converted, tmp_path, capsys):
    run, x, options, _ = converted
    options = {**options, "progress": None, "max_bytes": 10}
    result = pv.to_inference_data(run, x, **options, out=tmp_path / "a.nc")
    assert result["posterior"]["z"].shape == (2, 30, 7, 2)
    assert "a.nc, 0.0454 MiB: 9 data" in (said := capsys.readouterr().err), said


# --- what ArviZ does with it ----------------------------------------------------------------------


@pytest.fixture
def close():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def test_arviz_summarizes_and_draws_it(converted, close):
    whole = converted[-1]
    some = whole.isel(data=slice(2)) if not AT_LEAST_1 else _of(whole, data=slice(2))
    interval = {"ci_prob": 0.9, "ci_kind": "hdi"} if AT_LEAST_1 else {"hdi_prob": 0.9}
    table = az.summary(some, var_names=["z"], round_to="none", **interval)
    assert len(table) == 4
    draws = np.asarray(some["posterior"]["z"].mean(("chain", "draw"))).flatten()
    np.testing.assert_allclose(table["mean"].to_numpy(float), draws, rtol=1e-5)
    az.plot_forest(some, var_names=["z"], combined=True)
    az.plot_pair(_of(some, data=0), var_names=["z"])


def _of(result, **index):
    """Some of all groups that have draws of the data."""
    posterior = {"posterior": groups_of(result)["posterior"].isel(**index).reset_coords(drop=True)}
    return xr.DataTree.from_dict(posterior) if AT_LEAST_1 else az.InferenceData(**posterior)


@pytest.mark.skipif(not AT_LEAST_1, reason="a picture of ArviZ 1")
def test_places_of_simulated_truths_are_drawn_as_they_are(converted, close):
    az.plot_ecdf_pit(converted[-1], envelope_prob=0.95)
    az.plot_ecdf_pit(converted[-1], var_names=["z"], coverage=True)


class Line(pv.Program):
    """y ~ N(slope w, 1/2) with the exact posterior; or with another function of w in its place."""

    def __init__(self, x, used=torch.clone):
        super().__init__()
        w = used(x["w"])
        precision = 0.25 + 4 * float(w @ w)
        self.mean = nn.Parameter(4 * (w @ x["x"][:, 0]) / precision)
        self.sd, self.used = precision**-0.5, used

    def model(self, x):
        slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x["x"])):
            mean = slope * self.used(x["w"])
            pyro.sample("x", dist.Normal(mean[:, None], 0.5).to_event(1), obs=x["x"])

    def guide(self, x):
        pyro.sample("slope", dist.Normal(self.mean, self.sd))


def test_programs_all_of_whose_latents_are_shared_are_compared_by_loo():
    w = torch.randn(30)
    x = {"x": (2 * w + 0.5 * torch.randn(30))[:, None], "w": w}
    found = {
        name: pv.to_inference_data(Line(x, used), x, num_draws=250, predictive=False)
        for name, used in (("line", torch.clone), ("kink", torch.abs))
    }
    assert found["line"]["log_likelihood"].attrs["loo_is_valid"] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how models are weighed differs between the lines
        table = az.compare(found)
    assert table.index[0] == "line"
    loo = az.loo(found["line"])
    elpd = float(loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd)
    exact = 0.0  # of each datum given the others
    for i in range(30):
        others = torch.arange(30) != i
        precision = 0.25 + 4 * float(w[others] @ w[others])
        mean = 4 * float(w[others] @ x["x"][others, 0]) / precision
        law = dist.Normal(mean * w[i], math.sqrt(0.25 + float(w[i]) ** 2 / precision))
        exact += float(law.log_prob(x["x"][i, 0]))
    assert abs(elpd - exact) < 0.2


# --- the command line -----------------------------------------------------------------------------


def test_a_run_becomes_a_file_at_the_command_line(tmp_path, capsys):
    vae = bernoulli_vae.build(64, latent_dim=2, hidden_dim=4)
    pv.fit(vae, pv.datasets.load("digits").train, steps=2, progress=False).save(tmp_path / "run")
    out = tmp_path / "posterior.nc"
    words = ["posterior", str(tmp_path / "run"), "--num_data", "3", "--num_draws", "20"]
    assert main([*words, "--out", str(out), "--num_prior", "2"]) == 0
    said = capsys.readouterr()
    assert f"written: {out}" in said.out and "3 test rows of digits" in said.out
    with xr.open_dataset(out, group="training", engine="h5netcdf") as curve:
        assert curve["bound"].dims == ("step",)
    with xr.open_dataset(out, group="posterior", engine="h5netcdf") as draws:
        assert draws["z"].shape == (4, 20, 3, 2)
    for more, message in (
        ([], "where to? --out posterior.nc"),
        (["--out", str(out)], "exists and would be lost"),
        (["--out", "a.csv"], "ends otherwise than in .nc or .zarr"),
        (["--out", str(tmp_path / "b.nc"), "--refined", "best"], "refined"),
    ):
        assert main([*words, *more]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and len(error.splitlines()) == 1
