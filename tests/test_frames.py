"""Frames of any library and sparse matrices: the same numbers, and names that stay with them."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
import torch

import pyro_vae as pv
from pyro_vae.datasets import from_array, split
from pyro_vae.diagnostics import report
from pyro_vae.models import gaussian_vae
from pyro_vae.program import frames
from pyro_vae.program.inputs import as_tensor

VALUES = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
NAMES = [f"gene {i}" for i in range(12)]
FRAME = pd.DataFrame(VALUES, columns=["a", "b", "c"], index=NAMES)
COUNTS = np.random.default_rng(0).poisson(0.5, size=(12, 3))


class ByProtocol:
    """A frame of a library that nobody knows."""

    def __init__(self, frame, protocol):
        self._of = lambda *a, **k: getattr(frame, protocol)(*a, **k)
        setattr(type(self), protocol, lambda self, *a, **k: self._of(*a, **k))


class Exchanged(ByProtocol):
    pass


class Streamed(ByProtocol):
    pass


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return gaussian_vae.build(3, latent_dim=2, hidden_dim=4, sigmoid_mean=False)


@pytest.fixture(scope="module")
def counted():
    torch.manual_seed(0)
    return pv.VAE.build(3, latent_dim=2, hidden_dim=4, likelihood=pv.likelihoods.Poisson())


SAME = {
    "pandas": FRAME,
    "nullable": FRAME.astype("Float32"),
    "sparse columns": FRAME.astype(pd.SparseDtype("float32", 0.0)),
    "polars": pl.DataFrame(VALUES, schema=["a", "b", "c"]),
    "interchange": Exchanged(FRAME, "__dataframe__"),
    "csr_array": sp.csr_array(VALUES),
    "csr_matrix": sp.csr_matrix(VALUES),
    "coo": sp.coo_array(VALUES),
}


@pytest.mark.parametrize("x", SAME.values(), ids=SAME)
def test_every_form_is_the_array(x, vae):
    """In every verb that takes arrays, to the last digit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pv.PyroVaeWarning)
        for verb in (pv.elbo, pv.encode):
            torch.testing.assert_close(verb(vae, x), verb(vae, VALUES), rtol=0, atol=0)
        assert torch.equal(
            pv.log_evidence(vae, x, num_particles=100).value,
            pv.log_evidence(vae, VALUES, num_particles=100).value,
        )
    assert pv.check(vae, x).num_rows == 12
    assert torch.equal(from_array(x).x, torch.from_numpy(VALUES))
    assert torch.equal(as_tensor({"x": x}["x"]), torch.from_numpy(VALUES))


@pytest.mark.parametrize("make", [sp.csr_array, sp.csr_matrix], ids=["array", "matrix"])
def test_sparse_counts_train_as_dense_ones_do(make, counted):
    """Also as an entry of a dict, and to the digest of the data."""
    runs = []
    for x in (COUNTS, make(COUNTS), {"x": make(COUNTS)}):
        torch.manual_seed(0)
        program = pv.VAE.build(3, latent_dim=2, hidden_dim=4, likelihood=pv.likelihoods.Poisson())
        runs.append(pv.fit(program, x, steps=3, engine="pyro", progress=False))
    first = runs[0]
    for run in runs[1:]:
        assert run.manifest["data_digest"] == first.manifest["data_digest"]
        pd.testing.assert_series_equal(run.history["bound"], first.history["bound"])
    assert torch.equal(pv.elbo(counted, make(COUNTS)), pv.elbo(counted, COUNTS))


def test_what_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(frames, "free_memory", lambda: 2**30)
    with pytest.raises(ValueError, match=r"8\.94 GiB dense, and 1 GiB are free.*fewer columns"):
        as_tensor(sp.csr_array((20_000, 40_000)))
    assert as_tensor(sp.csr_array((200, 400))).shape == (200, 400)


MIXED = pd.DataFrame({"a": [1.0, 2.0], "b": [True, False], "n": [1, 2]})


def test_columns_of_several_kinds_of_numbers_are_numbers():
    expected = torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 2.0]], dtype=torch.float64)
    assert torch.equal(as_tensor(MIXED), expected)
    assert torch.equal(as_tensor(pl.from_dict(MIXED.to_dict("list"))), expected)
    gaps = pl.DataFrame({"a": [1.0, None], "b": [True, None], "n": [1, None]})
    assert as_tensor(gaps).isnan().tolist() == [[False] * 3, [True] * 3]


DAYS = pd.to_datetime(["2020-01-01", "2021-01-01"])
REFUSED = {
    "text": (MIXED.assign(c=["x", "y"]), "'c' of dtype str.*'x' in row 0.*factorize"),
    "dates": (MIXED.assign(c=DAYS), r"'c' of dtype datetime64.*total_seconds"),
    "spans": (MIXED.assign(c=DAYS - DAYS[0]), r"'c' of dtype timedelta.*t\.dt\.total_seconds"),
    "categories": (MIXED.assign(c=pd.Categorical(["x", "y"])), r"'c'.*cat\.codes.*Columns"),
    "objects": (MIXED.assign(c=pd.Series([1, 2.5], dtype=object)), r"'c'.*\.astype\(float\)"),
    "polars text": (pl.DataFrame({"a": [1.0], "c": ["x"]}), "'c' of dtype String.*factorize"),
    "polars dates": (
        pl.DataFrame({"c": pl.Series([1]).cast(pl.Date)}),
        "'c' of dtype Date.*dates?",
    ),
    "polars categories": (pl.DataFrame({"c": pl.Series(["x"]).cast(pl.Categorical)}), "cat.codes"),
    "series": (pd.Series(["x"]), "values of dtype str"),
    "lazy": (pl.LazyFrame({"a": [1.0]}), r"\.collect\(\)"),
    "interchange": (Exchanged(MIXED.assign(c=["x", "y"]), "__dataframe__"), "'c'.*factorize"),
}


@pytest.mark.parametrize(("x", "said"), REFUSED.values(), ids=REFUSED)
def test_a_column_that_is_no_number_is_named_with_what_to_do(x, said, vae):
    for verb in (as_tensor, from_array, lambda x: pv.elbo(vae, x)):
        with pytest.raises(TypeError, match=said):
            verb(x)


def test_an_arrow_stream_is_read_by_pandas_or_asks_for_pyarrow():
    x = Streamed(pl.DataFrame(VALUES), "__arrow_c_stream__")
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        with pytest.raises(TypeError, match="install pyarrow, or pass its frame"):
            as_tensor(x)
    else:
        assert torch.equal(as_tensor(x), torch.from_numpy(VALUES))


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (NAMES, NAMES),
        (range(5, 17), list(range(5, 17))),
        (range(12), list(range(12))),
        (pd.MultiIndex.from_product([["u"], range(12)]), [f"u, {i}" for i in range(12)]),
    ],
    ids=["text", "numbers", "counted", "several levels"],
)  # fmt: skip
def test_the_index_of_a_frame_names_the_data(index, expected, vae):
    """Of a frame, in a dict, and of a ``Data`` made from one."""
    frame = pd.DataFrame(VALUES, columns=["a", "b", "c"], index=index)
    for x in (frame, {"x": frame}, from_array(frame)):
        assert pv.summarize(vae, x, num_draws=10)["data"].values.tolist() == expected
    found = pv.summarize(vae, from_array(frame)[[3, 1]], num_draws=10)
    assert found["data"].values.tolist() == [expected[3], expected[1]]


def test_dates_of_an_index_stay_dates(vae):
    days = pd.date_range("2020-01-01", periods=12)
    found = pv.summarize(vae, pd.DataFrame(VALUES, index=days), num_draws=10)
    assert pd.Timestamp(found["data"].values[1]) == days[1]


@pytest.mark.filterwarnings("ignore::pyro_vae.errors.PyroVaeWarning")
def test_rows_and_columns_keep_their_names_in_arvizs_object_and_on_the_disk(vae, tmp_path):
    result = pv.to_inference_data(vae, FRAME, num_draws=10, num_prior=5)
    stored = pv.to_inference_data(vae, FRAME, num_draws=10, out=tmp_path / "p.nc", progress=False)
    for each in (result, stored):
        assert each["posterior"]["data"].values.tolist() == NAMES
        assert each["observed_data"]["x_dim"].values.tolist() == ["a", "b", "c"]
        value = float(each["observed_data"]["x"].sel(data="gene 3", x_dim="b"))
        assert value == pytest.approx(VALUES[3, 1])
    stored.close()
    coords = {"x_dim": [1, 2, 3], "data": range(12)}
    own = pv.to_inference_data(vae, FRAME, num_draws=5, coords=coords)
    assert own["observed_data"]["x_dim"].values.tolist() == [1, 2, 3]
    assert own["posterior"]["data"].values.tolist() == list(range(12))


@pytest.mark.filterwarnings("ignore::pyro_vae.errors.PyroVaeWarning")
def test_columns_of_polars_keep_their_names(vae):
    result = pv.to_inference_data(vae, SAME["polars"], num_draws=5, num_prior=0, predictive=False)
    assert result["observed_data"]["x_dim"].values.tolist() == ["a", "b", "c"]


@pytest.fixture
def only_weights(monkeypatch):
    """A diagnosis that asks one question alone, for its time."""

    def refuses(*args, **options):
        raise ValueError("not asked")

    for name in ("_calibration", "_gaps", "profile", "predictive_checks", "misspecification"):
        monkeypatch.setattr(report, name, refuses)
    monkeypatch.setattr(report, "sandwich", refuses)


@pytest.mark.filterwarnings("ignore::pyro_vae.errors.PyroVaeWarning")
def test_a_diagnosis_calls_data_by_their_names(vae, only_weights):
    options = {"num_particles": 30, "num_simulations": 20, "progress": False}
    diagnosis = pv.diagnose(vae, FRAME, **options)
    table = diagnosis.data_table()
    assert table.index.tolist() == NAMES and table.index.name == "datum"
    plain = pv.diagnose(vae, VALUES, **options).data_table()
    pd.testing.assert_frame_equal(table.reset_index(drop=True), plain.reset_index(drop=True))
    drawn = diagnosis.to_arviz(num_draws=5, num_simulations=0)
    assert drawn["posterior"]["data"].values.tolist() == NAMES


def test_names_stay_with_their_rows_in_a_split():
    parts = split(from_array(FRAME), test=4, seed=1)
    for part in (parts.train, parts.test):
        for name, row in zip(part.row_names, part.x, strict=True):
            np.testing.assert_array_equal(FRAME.loc[name], row)
    with pytest.raises(ValueError, match=r"row_names: got shape \(2,\), expected \(12,\)"):
        pv.datasets.Data(torch.from_numpy(VALUES), row_names=np.array(["a", "b"]))
