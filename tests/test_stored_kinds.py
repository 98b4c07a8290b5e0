"""Kinds of items and entries that a program is built from and trained on, stored or in memory."""

import os

import numpy as np
import pytest
import torch
import zarr

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae
from pyro_vae.program import stored

N, D = 120, 6
BITS = (np.random.default_rng(0).random((N, D)) > 0.5).astype(np.float32)
LABELS = np.arange(N) % 3


class Items(torch.utils.data.Dataset):
    def __init__(self, item):
        self.item = item

    def __len__(self):
        return N

    def __getitem__(self, number):
        return self.item(number)


class Listed(Items):
    """As of Hugging Face: a row is a dict, and its vectors are lists."""

    def __getitems__(self, numbers):
        return [self.item(number) for number in numbers]


ITEMS = {
    "tensors": Items(lambda i: torch.from_numpy(BITS[i])),
    "arrays": Items(lambda i: BITS[i]),
    "dicts": Items(lambda i: {"x": BITS[i]}),
    "dicts of lists": Items(lambda i: {"x": BITS[i].tolist()}),
    "several dicts of lists": Listed(lambda i: {"x": BITS[i].tolist()}),
}


@pytest.fixture(params=["stored", "in memory"])
def kept(request, monkeypatch):
    if request.param == "stored":
        monkeypatch.setattr(stored, "IN_MEMORY", 0)


@pytest.mark.filterwarnings("ignore::pyro_vae.PyroVaeWarning")
@pytest.mark.parametrize("kind", ITEMS)
def test_items_of_every_kind_are_the_same_rows(kind, kept):
    program = bernoulli_vae.build(D, latent_dim=2, hidden_dim=4)
    assert torch.equal(pv.elbo(program, ITEMS[kind]), pv.elbo(program, BITS))
    of_items, of_rows = (
        pv.log_evidence(program, x, num_particles=30, progress=False).value
        for x in (ITEMS[kind], BITS)
    )
    assert torch.equal(of_items, of_rows)
    built = pv.VAE.build(ITEMS[kind], latent_dim=2, hidden_dim=4)
    assert isinstance(built.likelihood, pv.likelihoods.Bernoulli)
    pv.fit(built, ITEMS[kind], steps=1, engine="pyro", progress=False)


def test_a_program_with_covariates_is_built_from_a_dict_of_files(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", BITS)
    x = {"x": np.load(tmp_path / "x.npy", mmap_mode="r"), "label": zarr.array(LABELS[:, None])}
    monkeypatch.setattr("pyro_vae.models.vae.SOME", 7)
    read = []
    monkeypatch.setattr(
        stored.Stored, "some", lambda self, number: read.append(number) or self.first(number)
    )
    program = pv.VAE.build(x, latent_dim=2, hidden_dim=4)
    assert read == [7] and program.posterior.given_dim == 1


def test_tuples_name_no_observed_entry(kept):
    with pytest.raises(TypeError, match='an entry "x", which is observed'):
        pv.VAE.build(Items(lambda i: (BITS[i], LABELS[i])), latent_dim=2)


class Array:
    """An array that lies elsewhere, whose rows are what ``read`` makes of a key."""

    def __init__(self, number, read):
        self.shape, self.dtype, self.read = (number, D), np.dtype("f4"), read

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        return self.read(key)


class Gap(Items):
    """One row is dropped where several are asked for."""

    def __getitems__(self, numbers):
        return [self.item(number) for number in numbers if number != 77]


def short(number):
    if number >= 90:
        raise IndexError("list index out of range")
    return BITS[number]


OTHER = {
    "fewer rows": (Array(200, lambda key: BITS[key]), r"asked for .* gave"),
    "one row": (Array(N, lambda key: BITS[key][:1]), r"asked for .* and gave 1: rows would be"),
    "narrower": (Array(N, lambda key: BITS[key][:, :3]), r"have shape \(3,\), expected \(6,\)"),
    "a gap": (Gap(lambda i: BITS[i]), r"the Gap was asked for .* rows, .* to .*, and gave"),
    "no such row": (Items(short), r"no rows .* \(IndexError: .*\), of the 120 that its len\(\)"),
}


@pytest.mark.parametrize("kept", [True, False], ids=["in memory", "by rows"])
@pytest.mark.parametrize("name", OTHER)
def test_data_that_give_other_rows_than_were_asked_for_are_refused(name, kept, monkeypatch):
    """Before, values of 119 rows were returned for 120, those after the gap a row too early."""
    if not kept:
        monkeypatch.setattr(stored, "IN_MEMORY", 100)
    data, said = OTHER[name]
    program = bernoulli_vae.build(D, latent_dim=2, hidden_dim=4)
    for call in (
        pv.elbo,
        lambda program, x: pv.log_evidence(program, x, num_particles=5),
        lambda program, x: pv.fit(program, x, steps=20, batch_size=50, progress=False),
    ):
        with pytest.raises(ValueError, match=said):
            call(program, data)


def test_a_file_that_was_cut_after_it_was_opened_is_refused(tmp_path):
    """Reading what is not there any more ends a process by SIGBUS."""
    path = tmp_path / "x.npy"
    np.save(path, np.ones((3000, D), "f4"))
    program, x = bernoulli_vae.build(D, latent_dim=2, hidden_dim=4), np.load(path, mmap_mode="r")
    assert len(pv.elbo(program, x[1000:])) == 2000
    os.truncate(path, 1000)
    for rows in (x, x[1000:]):
        with pytest.raises(ValueError, match=r"x.npy has 1,000 bytes, expected .*open it again"):
            pv.elbo(program, rows)
