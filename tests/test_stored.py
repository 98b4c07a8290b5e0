"""Data larger than memory: rows that stay in their file give what they give in memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

import pyro_vae as pv
from pyro_vae.datasets import StoredData, from_array, from_file, split
from pyro_vae.datasets.data import noise
from pyro_vae.models import bernoulli_vae
from pyro_vae.program import stored

N, D = 300, 12
PIXELS = np.random.default_rng(0).integers(0, 256, (N, D), dtype=np.uint8)
BITS = (PIXELS > 200).astype(np.float32)
LABELS = np.arange(N) % 3


def built():
    torch.manual_seed(0)
    return bernoulli_vae.build(D, latent_dim=2, hidden_dim=4)


def trained(x, **options):
    return pv.fit(built(), x, epochs=3, engine="eager", progress=False, **options)


def mapped(folder, values, name="x"):
    np.save(folder / f"{name}.npy", values)
    return np.load(folder / f"{name}.npy", mmap_mode="r")


class Items:
    """Neither a Dataset of torch's nor an array: it has numbers, and a length."""

    def __init__(self, rows):
        self.rows, self.read = rows, 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        self.read += 1
        return self.rows[number]


class Several(Items):
    def __getitems__(self, numbers):
        return [self.rows[number] for number in numbers]


def h5(folder, values):
    import h5py

    return h5py.File(folder / "x.h5", "w").create_dataset("x", data=values, chunks=(7, D))


KINDS = {
    "memmap": mapped,
    "memmap of another byte order": lambda folder, x: mapped(folder, x.astype(">f4")),
    "memmap in Fortran's order": lambda folder, x: mapped(folder, np.asfortranarray(x)),
    "a slice of a memmap": lambda folder, x: mapped(folder, np.concatenate([x, x]))[:N],
    "zarr": lambda folder, x: zarr.array(x, chunks=(7, D)),
    "h5py": h5,
    "items": lambda folder, x: Items(x),
    "several items at once": lambda folder, x: Several(x),
}


@pytest.fixture(scope="module")
def in_memory():
    return trained(BITS, validation=BITS[:50])


@pytest.fixture
def by_rows(monkeypatch):
    """Whatever can be read by rows is, however small."""
    monkeypatch.setattr(stored, "IN_MEMORY", 0)
    monkeypatch.setattr(stored, "BYTES_AT_ONCE", 900)


@pytest.mark.parametrize("kind", KINDS)
def test_training_on_stored_rows_is_training_on_rows_in_memory(kind, in_memory, tmp_path, by_rows):
    x = KINDS[kind](tmp_path, BITS)
    held_out = mapped(tmp_path, BITS[:50], "held_out")
    run = trained(x, validation=held_out)
    for name, parameter in run.program.named_parameters():
        assert torch.equal(parameter, dict(in_memory.program.named_parameters())[name])
    for name in ("validation_bound", "bound", "loss"):
        np.testing.assert_array_equal(run.history[name], in_memory.history[name])
    for name in ("data_digest", "validation_digest", "num_data", "row"):
        assert run.manifest[name] == in_memory.manifest[name]
    assert torch.equal(pv.elbo(run.program, x), pv.elbo(run.program, BITS))


def test_a_program_is_built_from_some_of_the_rows(tmp_path, by_rows):
    counts = np.arange(N).reshape(N, 1) % 5
    for x in (mapped(tmp_path, counts), zarr.array(counts), from_array(mapped(tmp_path, counts))):
        likelihood = pv.likelihoods.Categorical()
        assert pv.VAE.build(x, latent_dim=1, likelihood=likelihood).likelihood.num_categories == 5


def test_a_dict_may_mix_what_is_stored_and_what_is_not(tmp_path):
    def model(x, t):
        raise NotImplementedError

    values = {"x": mapped(tmp_path, BITS), "t": torch.arange(float(N))}
    program = pv.Program(model, model)
    rows = pv.program.inputs.gathered(values, program)
    index = torch.tensor([5, 2, 5])
    batch = rows.batch(index, 1)
    assert torch.equal(batch["x"], torch.from_numpy(BITS)[index])
    assert torch.equal(batch["t"], values["t"][index])
    with pytest.raises(ValueError, match="common first dimension"):
        pv.program.inputs.gathered(values | {"t": torch.zeros(3)}, program)


def test_minibatches_read_their_rows_and_no_others(by_rows):
    items = Items(torch.from_numpy(BITS))
    rows = pv.program.inputs.gathered(items, built())
    items.read = 0
    assert torch.equal(rows.batch(torch.tensor([7, 7, 3]), 1), items.rows[[7, 7, 3]])
    assert items.read == 2


def test_a_small_data_set_of_items_is_read_once():
    class Small(Items, torch.utils.data.Dataset):
        pass

    items = Small(torch.from_numpy(BITS))
    trained(items)
    assert items.read <= N + 1


@pytest.mark.parametrize("change, said", [
    (7.0, r"such as 7 in row 277"),
    (np.nan, r"not finite in row 277"),
])  # fmt: skip
def test_impossible_values_are_named_by_their_row(change, said, tmp_path, by_rows):
    wrong = BITS.copy()
    wrong[277, 3] = change
    with pytest.raises(ValueError, match=said):
        trained(mapped(tmp_path, wrong))
    with pytest.raises(ValueError, match=said):
        trained(BITS, validation=mapped(tmp_path, wrong))
    with pytest.raises(ValueError, match=said):
        pv.elbo(built(), mapped(tmp_path, wrong))


@pytest.mark.parametrize("binarize", ["none", "threshold", "static", "dynamic"])
def test_stored_data_is_the_same_data(binarize, tmp_path, by_rows):
    np.save(tmp_path / "x.npy", PIXELS)
    options = {"binarize": binarize, "scale": 255.0, "seed": 3}
    ours, theirs = from_file(tmp_path / "x.npy", **options), from_array(PIXELS, **options)
    assert isinstance(ours, StoredData)
    assert (ours.digest, ours.dim, len(ours)) == (theirs.digest, theirs.dim, len(theirs))
    assert torch.equal(ours.x, theirs.x)
    assert torch.equal(ours.rows(), theirs.rows())
    some = torch.tensor([9, 2, 250])
    assert torch.equal(ours.batch(some, 4), theirs.batch(some, 4))
    for key in (slice(3, 90, 7), some, np.arange(N) % 5 == 1, torch.arange(N) % 5 == 1):
        assert torch.equal(
            ours[key].batch(torch.arange(3), 2), theirs[key].batch(torch.arange(3), 2)
        )
        assert ours[key].digest == theirs[key].digest
    assert torch.equal(ours[10:][some].rows(), theirs[10:][some].rows())


def test_the_same_rows_are_held_out(tmp_path, by_rows):
    ours = split(from_array(mapped(tmp_path, BITS)), test=0.1, validation=40, seed=5)
    theirs = split(from_array(BITS), test=0.1, validation=40, seed=5)
    for part in ("train", "validation", "test"):
        mine, other = getattr(ours, part), getattr(theirs, part)
        assert mine.index.tolist() == sorted(other.index.tolist())
        assert torch.equal(mine.x, torch.from_numpy(BITS)[mine.index])
    assert repr(ours).startswith("DataSet(data: train 230, validation 40, test 30; dim 12")


@pytest.mark.parametrize("size, count", [(1, 1), (10, 0), (10, 10), (5000, 77), (5000, 4999)])
def test_the_first_of_a_permutation(size, count):
    whole = noise.permutation(size, seed=9)[:count]
    assert torch.equal(noise.first_of_permutation(size, count, seed=9), whole.sort().values)


@pytest.mark.parametrize("values, said", [
    (np.where(np.arange(D) == 0, np.nan, PIXELS), r"nan at row 0, column 0"),
    (PIXELS.astype(np.float32) - 1000, r"expected values in \[0, 1\]"),
])  # fmt: skip
def test_stored_values_are_checked_once_where_they_enter(values, said, tmp_path, by_rows):
    with pytest.raises(ValueError, match=said):
        from_array(mapped(tmp_path, values.astype(np.float32)), binarize="dynamic", scale=255.0)


def test_what_does_not_fit_into_memory_says_so(tmp_path, monkeypatch, by_rows):
    data = from_array(mapped(tmp_path, BITS))
    monkeypatch.setattr(stored, "free_memory", lambda: 1000)
    with pytest.raises(ValueError, match="take some rows, x"):
        pv.log_evidence(built(), data, num_particles=2)
    trained(data)


def test_indices_of_a_wrong_kind_are_refused(tmp_path, by_rows):
    data = from_array(mapped(tmp_path, BITS))
    for key in (3, "x", np.zeros((2, 2), int), [0.5]):
        with pytest.raises(TypeError, match="expected a slice"):
            data[key]
    with pytest.raises(IndexError, match="below 300"):
        data[np.array([300])]
    with pytest.raises(ValueError, match="mask of 3 for 300"):
        data[np.zeros(3, bool)]


MEMORY = """
import sys, torch, pyro_vae as pv
from pyro_vae.models import bernoulli_vae
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(l.split()[1]) for l in lines if l.startswith("RssAnon")) / 1024
seen = []
pv.fit(bernoulli_vae.build(4, latent_dim=2), torch.rand(10, 4).round(), steps=2, progress=False)
before = anonymous()
data = pv.datasets.split(pv.datasets.from_file(sys.argv[1]), test=0.1, validation=0.1)
program = bernoulli_vae.build(data.dim, latent_dim=2, hidden_dim=8)
pv.fit(program, data.train, steps=40, validation=data.validation,
       evaluate_every=40, progress=False, engine="eager",
       callbacks=[lambda record: seen.append(anonymous())])
print(max(seen) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_large_file_takes_little_memory(tmp_path):
    big = np.lib.format.open_memmap(
        tmp_path / "big.npy", mode="w+", dtype=np.float32, shape=(100_000, 784)
    )
    big.flush()
    del big
    said = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "big.npy")],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert float(said.stdout) < 200  # MiB, of a file of 299
