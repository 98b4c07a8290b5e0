"""Kinds of items and entries that a program is built from and trained on, stored or in memory."""

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
