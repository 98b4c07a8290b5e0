"""Masked values never pass for measured ones, whichever door they come by."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.datasets import Data, from_array
from pyro_vae.models import bernoulli_vae, gaussian_vae
from pyro_vae.program.inputs import as_tensor

N, D = 12, 3
SEEN = np.arange(N * D).reshape(N, D) % 5 > 0


def values():
    return np.random.default_rng(0).random((N, D))


def masked():
    """One value in five is not known; what stands there is far from the others."""
    return np.ma.MaskedArray(np.where(SEEN, values(), 1e3), ~SEEN)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return gaussian_vae.build(D, latent_dim=1, hidden_dim=4, init_std=None)


VERBS = {
    "fit": lambda p, x: pv.fit(p, x, steps=1),
    "fit_dict": lambda p, x: pv.fit(p, {"x": x}, steps=1),
    "validation": lambda p, x: pv.fit(p, values(), steps=1, validation=x),
    "check": pv.check,
    "elbo": pv.elbo,
    "log_evidence": lambda p, x: pv.log_evidence(p, x, num_particles=500),
    "encode": pv.encode,
    "reconstruct": pv.reconstruct,
    "sample": lambda p, x: pv.sample(p, 2, like=x),
    "gradient_report": lambda p, x: pv.gradient_report(p, x, [pv.objectives.AEVB()]),
    "to_inference_data": lambda p, x: pv.to_inference_data(p, x, num_draws=2),
    "sample_posterior": lambda p, x: pv.chains.sample_posterior(p, x, num_draws=4, warmup=20),
    "from_array": lambda p, x: from_array(x),
    "covariates": lambda p, x: pv.elbo(p, {"x": values(), "c": x}),
    "labels": lambda p, x: from_array(values(), x[:, 0].astype(int)),
    "rows": lambda p, x: from_array(values())[x[:, 0].astype(int)],
    "whole numbers": lambda p, x: pv.elbo(p, x.astype(int)),
}


@pytest.mark.parametrize("verb", VERBS)
def test_masked_values_are_refused_with_their_number_and_the_ways_out(vae, verb):
    with pytest.raises(TypeError, match=r"masked array, .* values masked, the first in row 0") as e:
        VERBS[verb](vae, masked())
    assert "fill them" in str(e.value) and "drop their rows" in str(e.value)


def test_the_number_of_masked_values_is_told(vae):
    with pytest.raises(TypeError, match=r'data "c" is a masked array, 8 of its 36 values'):
        pv.elbo(vae, {"x": values(), "c": masked()})


@pytest.mark.parametrize("verb", ["elbo", "from_array", "fit"])
def test_an_array_that_masks_nothing_is_an_array(vae, verb):
    VERBS[verb](vae, np.ma.masked_invalid(values()))
    assert torch.equal(as_tensor(np.ma.masked_array(values())), torch.tensor(values()))


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
@pytest.mark.parametrize("make", [as_tensor, Data, Data.from_pixels, from_array])
def test_masked_tensors_are_refused(make):
    x = torch.masked.masked_tensor(torch.rand(N, D), torch.tensor(SEEN))
    with pytest.raises(TypeError, match=r"8 of its 36 values masked, the first in row 0"):
        make(x)


class Missing(pv.Program):
    """A program that is told what was seen, as the refusal proposes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = torch.nn.Linear(D, 2), torch.nn.Linear(1, D)

    def model(self, x):
        with pyro.plate("data", len(x["x"])):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            law = dist.Normal(self.decoder(z), 1.0).mask(x["seen"]).to_event(1)
            pyro.sample("x", law, obs=x["x"])

    def guide(self, x):
        with pyro.plate("data", len(x["x"])):
            mean, scale = self.encoder(x["x"] * x["seen"]).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))


def test_what_the_refusal_proposes_leaves_masked_values_out():
    program, x = Missing(), masked()
    data = {"x": x.filled(0), "seen": ~x.mask}
    other = {"x": np.where(SEEN, x.data, 7.0), "seen": SEEN}
    pv.check(program, data)
    assert torch.equal(pv.elbo(program, data), pv.elbo(program, other))
    pv.fit(program, data, steps=2)
    assert torch.equal(pv.elbo(program, data), pv.elbo(program, other))


# --- what else stands for a missing value, or is no dense number --------------------------------


def test_missing_values_of_frames_are_told_with_their_place():
    frame = pd.DataFrame(values(), columns=list("abc")).astype("Float64")
    assert from_array(frame).columns == ("a", "b", "c")
    frame.iloc[4, 1] = pd.NA
    with pytest.raises(ValueError, match="nan at row 4, column 1"):
        from_array(frame)
    labels = pd.Series([0, 1, pd.NA] * 4, dtype="Int64")
    with pytest.raises(ValueError, match="labels: got none for row 2"):
        from_array(values(), labels)
    with pytest.raises(TypeError, match=r"column 'a' .*None in row 0"):
        from_array(pd.DataFrame({"a": np.array([None, 1], object)}))


def test_arrays_of_pandas_and_xarray_are_read():
    import xarray as xr

    for x in (xr.DataArray(values()), pd.DataFrame(values()), pd.DataFrame(values()).to_numpy()):
        assert torch.equal(from_array(x).x, torch.tensor(values()).float())
    labels = pd.array(np.arange(N) % 2, dtype="Int8")
    assert from_array(values(), labels).labels.tolist() == [0, 1] * (N // 2)
    with pytest.raises(ValueError, match="nan at row 0"):
        from_array(xr.DataArray(values()).where(SEEN))


def test_read_only_arrays_are_copied_without_a_warning(vae):
    x = values()
    x.flags.writeable = False
    assert torch.equal(pv.elbo(vae, x), pv.elbo(vae, values()))


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.rand(4, 3).to_sparse(), "sparse.*to_dense"),
        (torch.rand(4, 3) * 1j, "complex64"),
        (np.array([["a"]]), "dtype <U1.*astype"),
        (np.array([[1, None]]), "dtype object"),
        (pd.DataFrame({"a": ["text"]}), "column 'a' of dtype"),
    ],
)
def test_other_things_are_refused(vae, x, said):
    with pytest.raises(TypeError, match=said):
        pv.elbo(vae, x)


def test_long_doubles_are_read(vae):
    assert torch.equal(pv.elbo(vae, values().astype(np.longdouble)), pv.elbo(vae, values()))


# --- data where the mean cannot come ------------------------------------------------------------

STANDARD = torch.randn(40, D, generator=torch.Generator().manual_seed(0))
REACHES = "can only be from 0 to 1, where the data are from -.*sigmoid_mean=False"


@pytest.mark.filterwarnings("ignore:khat exceeds")
@pytest.mark.parametrize("verb", ["fit", "elbo", "log_evidence", "gradient_report"])
def test_means_that_cannot_reach_the_data_are_warned_about(vae, verb):
    with pytest.warns(pv.PyroVaeWarning, match=REACHES):
        VERBS[verb](vae, STANDARD)


def test_means_that_cannot_reach_the_held_out_data_are_warned_about(vae):
    with pytest.warns(pv.PyroVaeWarning, match=REACHES):
        pv.fit(vae, STANDARD.sigmoid(), steps=1, validation=STANDARD)


def test_check_notes_what_fit_warns_of(vae):
    (note,) = pv.check(vae, STANDARD).notes
    assert "can only be from 0 to 1" in note
    pixels = 255 * STANDARD.sigmoid()
    assert (
        "from_array(x, scale=255), or build it with sigmoid_mean" in pv.check(vae, pixels).notes[0]
    )


def test_a_mean_without_bounds_and_data_within_them_are_not_warned_about(vae):
    free = gaussian_vae.build(D, latent_dim=1, hidden_dim=4, sigmoid_mean=False)
    noisy = STANDARD.sigmoid().round() + 0.02 * STANDARD  # around the ends of the range
    for program, x in ((free, STANDARD), (vae, STANDARD.sigmoid()), (vae, noisy)):
        assert not pv.check(program, x).notes
        pv.fit(program, x, steps=1)


class Rectified(pv.program.parts.Likelihood):
    """A part of one's own says where its mean can be."""

    mean_range = pv.program.parts.MeanRange(0.0, float("inf"))

    def __init__(self, latent_dim: int, data_dim: int) -> None:
        super().__init__()
        self.network = torch.nn.Linear(latent_dim, data_dim)

    def forward(self, z):
        return dist.Normal(torch.relu(self.network(z)), 1.0).to_event(1)


def test_a_part_of_ones_own_says_where_its_mean_can_be():
    program = gaussian_vae.build(D, latent_dim=1, likelihood=Rectified(1, D))
    with pytest.warns(pv.PyroVaeWarning, match="from 0 to inf, .* choose a likelihood whose mean"):
        pv.elbo(program, STANDARD)
    pv.elbo(program, STANDARD.abs())


def test_masked_values_may_lie_anywhere():
    class Filled(Missing):
        mean_range = pv.program.parts.MeanRange(0.0, 1.0)

    x = np.where(SEEN, values(), -9.0)
    assert not pv.check(Filled(), {"x": x, "seen": SEEN}).notes
    pv.fit(Filled(), {"x": x, "seen": SEEN}, steps=1)
    with pytest.warns(pv.PyroVaeWarning, match="from -9"):
        pv.fit(Filled(), {"x": x, "seen": np.ones_like(SEEN)}, steps=1)


def test_a_guide_outside_of_the_priors_support_is_refused_by_fit_as_by_check():
    """With validation off an exponential density goes on below zero."""

    class HalfLine(pv.program.parts.Prior):
        def forward(self):
            return dist.Exponential(torch.ones(1)).to_event(1)

    program = bernoulli_vae.build(D, latent_dim=1, hidden_dim=4, prior=HalfLine())
    x = (STANDARD > 0).float()
    for verb in ("check", "fit"):
        with pytest.raises(ValueError, match=r'"z".*: values from .*guide with the support'):
            VERBS[verb](program, x)
