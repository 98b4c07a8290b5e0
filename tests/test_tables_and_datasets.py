"""Frames, tuples, data sets of torch and dicts of all of them, wherever arrays go."""

import collections
import types
import warnings

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

import pyro_vae as pv
from pyro_vae.datasets import Data, DataSet, from_array, split
from pyro_vae.models import gaussian_vae
from pyro_vae.program import as_rows

from .quickly import some_quickly

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(30, 4, generator=GENERATOR), torch.rand(30, 2, generator=GENERATOR)
LABEL = torch.arange(30) % 3


class Conditional(pv.Program):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enc, self.dec = nn.Linear(6, 4), nn.Linear(4, 4)

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            law = dist.Normal(self.dec(torch.cat([z, y], -1)), 1.0).to_event(1)
            pyro.sample("x", law, obs=x)

    def guide(self, x, y):
        with pyro.plate("data", len(x)):
            mean, scale = self.enc(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))


class Items(Dataset):
    """Map-style: each item is what ``make`` makes of its number."""

    def __init__(self, make, size=30):
        self.make, self.size = make, size

    def __len__(self):
        return self.size

    def __getitem__(self, number):
        if number >= self.size:
            raise IndexError(number)
        return self.make(number)


class Named(Items):
    """As torchvision's, which say whether they are for training."""

    train, test = True, False


class Rows:
    """As data sets of other libraries are: no class of torch, but torch's protocol."""

    def __len__(self):
        return len(X)

    def __getitem__(self, number):
        return {"x": X[number].numpy(), "y": Y[number].numpy()}

    def __getitems__(self, numbers):
        return [self[number] for number in numbers]


Pair = collections.namedtuple("Pair", "y x")
FRAME = pd.DataFrame(X.numpy(), columns=list("abcd"))
FORMS = {
    "tuple": (X, Y),
    "list": [X, Y.numpy()],
    "namedtuple": Pair(x=X, y=Y),
    "dict of arrays": {"x": X.numpy(), "y": Y.numpy()},
    "dict of frames": {"y": pd.DataFrame(Y.numpy()), "x": FRAME},
    "other mapping": collections.UserDict(x=X, y=Y),
    "read-only mapping": types.MappingProxyType({"x": X, "y": Y}),
    "TensorDataset": TensorDataset(X, Y),
    "tuples": Items(lambda i: (X[i], Y[i])),
    "lists of arrays": Items(lambda i: [X[i].numpy(), Y[i].numpy()]),
    "dicts": Items(lambda i: {"y": Y[i], "x": X[i]}),
    "namedtuples": Items(lambda i: Pair(x=X[i], y=Y[i])),
    "with a part's name": Named(lambda i: (X[i], Y[i])),
    "several": ConcatDataset([TensorDataset(X[:9], Y[:9]), TensorDataset(X[9:], Y[9:])]),
    "Subset": Subset(Items(lambda i: (X[i % 30], Y[i % 30]), 60), range(30)),
    "of another library": Rows(),
    "Data": from_array({"x": X, "y": Y}),
}


def state(program):
    return [p.detach().clone() for p in program.parameters()]


def told(data):
    """What verbs make of data, after a training on them."""
    program = Conditional()
    pv.fit(program, data, steps=4, batch_size=8, validation=data, engine="pyro", progress=False)
    found = state(program)
    found += [verb(program, data) for verb in (pv.elbo, pv.encode, pv.reconstruct)]
    found.append(pv.sample(program, 3, like=data))
    found.append(pv.log_evidence(program, data, num_particles=20).value)
    return program, found


@pytest.fixture(scope="module")
def told_of_the_dict():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pv.PyroVaeWarning)
        return told({"x": X, "y": Y})[1]


few = pytest.mark.filterwarnings("ignore::pyro_vae.errors.PyroVaeWarning")  # updates and draws


@pytest.mark.parametrize("data", FORMS.values(), ids=FORMS)
def test_every_form_of_two_arrays_has_the_rows_of_the_dict(data):
    rows = as_rows(data, Conditional())
    assert torch.equal(rows["x"], X) and torch.equal(rows["y"], Y)
    assert sorted(rows) == ["x", "y"]


@few
@pytest.mark.parametrize(
    "name", some_quickly(FORMS, "tuple", "dict of frames", "TensorDataset", "dicts", "Data")
)
def test_every_form_of_two_arrays_is_the_dict(name, told_of_the_dict):
    """In every verb, to the last digit."""
    data = FORMS[name]
    program, found = told(data)

    assert len(found) > 5 and all(map(torch.equal, found, told_of_the_dict))
    assert pv.check(program, data).num_rows == 30
    result = pv.to_inference_data(program, data, num_draws=10)
    assert np.array_equal(result["observed_data"]["x"], X)
    assert np.array_equal(result["constant_data"]["y"], Y)


@pytest.mark.parametrize(
    "data",
    [
        FRAME,
        FRAME.astype(np.float64),
        FRAME.astype("Float32"),
        TensorDataset(X),
        (X,),
        Items(lambda i: X[i]),
        Items(lambda i: (X[i].numpy(),)),
        Subset(TensorDataset(X), range(30)),
        FRAME.to_xarray().to_array().T,
    ],
    ids=lambda data: type(data).__name__,
)
def test_every_form_of_one_array_is_the_tensor(data):
    """For programs that take x alone: frames of columns, and data sets of single tensors."""
    program = gaussian_vae.build(4, latent_dim=2, hidden_dim=3, sigmoid_mean=False)
    torch.testing.assert_close(as_rows(data, program), X, rtol=0, atol=0)
    pv.fit(program, data, steps=2, validation=data, engine="pyro", progress=False)
    assert pv.elbo(program, data).shape == (30,)


def test_a_series_has_one_number_a_row():
    class OneNumber(pv.Program):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(1, 2)

        def model(self, x, weight):
            assert x.shape == weight.shape == (len(x),) and weight.dtype == torch.int64
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x, weight):
            mean, scale = self.net(x[:, None]).unbind(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(mean, scale.exp()))

    data = {"x": FRAME["a"], "weight": pd.Series(LABEL.numpy())}
    pv.fit(OneNumber(), data, steps=2, progress=False)


def test_a_data_set_is_read_once():
    """Reading may be slow, or draw at random: all of fit sees the same rows."""
    read = []
    data = Items(lambda i: (read.append(i), torch.rand(4), Y[i])[1:])
    run = pv.fit(Conditional(), data, steps=4, progress=False)
    assert read == list(range(30)) and run.manifest["num_data"] == 30


def test_random_items_leave_the_generator_to_themselves():
    """torch's own loader takes a number from it."""
    program, before = Conditional(), torch.get_rng_state()
    as_rows(Items(lambda i: (X[i], Y[i])), program)
    assert torch.equal(torch.get_rng_state(), before)


class Whole:
    def __init__(self, x):
        self.train = self.test = x


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (DataLoader(TensorDataset(X, Y), batch_size=5), r"DataLoader.*pass its \.dataset"),
        (Stream(), r"Stream.*all rows at once"),
        (Items(lambda i: (X[i], "a" if i else object())), "cannot be stacked"),
        (Items(lambda i: X[i, : 1 + i % 2]), "cannot be stacked"),
        ((X, Y, LABEL), r"tuple of 3, and model\(x, y\) and guide\(x, y\) have 2 parameters"),
        ([[1.0, 2.0]], "np.asarray"),
        ({"x": X, "y": [[1.0]] * 30}, r'data "y" is list.*np\.asarray'),
        (FRAME.assign(e="text"), r"column 'e' of dtype \w+ \('text' in row 0\)"),
        ({"x": FRAME, "y": pd.Series(["a"] * 30)}, r'data "y": got values of dtype'),
        ({"x": X, "y": [[1.0], [1.0, 2.0]] * 15}, r'data "y" is list'),
        ({"image": X, "y": Y}, r'needs "x" too'),
        (Whole(X), "Whole, expected one part of it"),
        (iter([X]), "expected a Data, a tensor"),
        (None, "NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_table_is_refused_in_words(data, said):
    for verb in (pv.elbo, pv.check, pv.encode):
        with pytest.raises(TypeError, match=said):
            verb(Conditional(), data)


def test_images_with_labels_are_refused_with_a_way_out():
    """For a program of x alone, of which nobody says what the label is for."""
    program = gaussian_vae.build(4, latent_dim=2, hidden_dim=3, sigmoid_mean=False)
    for data in ((X, LABEL), TensorDataset(X, LABEL), Items(lambda i: (X[i], i % 3))):
        with pytest.raises(TypeError, match=r"have 1 parameter: pass what they take alone.*a dict"):
            pv.fit(program, data, steps=1)
    with pytest.raises(ValueError, match="no rows"):
        pv.elbo(program, Items(lambda i: X[i], 0))


def test_missing_values_of_a_frame_are_named():
    holes = FRAME.copy()
    holes.iloc[3, 1] = np.nan
    with pytest.raises(ValueError, match="not finite in row 3"):
        pv.elbo(Conditional(), (holes, Y))


def test_a_model_of_x_needs_an_entry_x():
    """Where it has further parameters too, that are no entries."""

    class Scaled(Conditional):
        def model(self, x, scale=1.0):
            raise AssertionError

        def guide(self, x):
            raise AssertionError

    with pytest.raises(TypeError, match="entries 'image', 'label', expected an entry \"x\""):
        pv.elbo(Scaled(), {"image": X, "label": LABEL})


def test_pixels_of_the_main_entry_are_real_numbers_and_labels_are_not():
    """Whatever it is called, and in whichever order the dict holds it."""
    image, label = (X > 0).byte(), LABEL.to(torch.uint8)

    class Named(Conditional):
        def model(self, image, label):
            assert image.dtype == torch.float32 and label.dtype == torch.uint8
            super().model(image, nn.functional.one_hot(label.long(), 3)[:, :2].float())

        def guide(self, label, image):
            super().guide(image, nn.functional.one_hot(label.long(), 3)[:, :2].float())

    program = Named()
    rows = as_rows({"label": label, "image": image}, program)
    assert list(rows) == ["image", "label"]
    pv.fit(program, {"label": label, "image": image}, steps=2, progress=False)


def test_a_function_of_one_parameter_may_call_its_entries_as_it_likes():
    class Batch(Conditional):
        def model(self, batch):
            super().model(batch["pixels"], batch["code"])

        def guide(self, batch):
            super().guide(batch["pixels"], batch["code"])

    program, reference = Batch(), Conditional()
    pv.fit(program, {"pixels": X, "code": Y}, steps=3, progress=False)
    pv.fit(reference, {"x": X, "y": Y}, steps=3, progress=False)
    assert all(map(torch.equal, state(program), state(reference)))


# --- Data of several entries ----------------------------------------------------------------------


def test_from_array_keeps_covariates():
    data = from_array({"y": Y.double().numpy(), "x": X.double().numpy(), "label": LABEL})
    assert torch.equal(data.x, X) and list(data.covariates) == ["y", "label"]
    assert data.covariates["y"].dtype == torch.float32
    assert data.covariates["label"].dtype == torch.int64
    rows = data[4:9].rows()
    assert list(rows) == ["x", "y", "label"] and torch.equal(rows["y"], Y[4:9])
    batch = data.batch(torch.tensor([7, 2]), epoch=1)
    assert torch.equal(batch["label"], LABEL[[7, 2]]) and torch.equal(batch["x"], X[[7, 2]])
    assert "beside y, label" in repr(data)


def test_only_x_of_a_dict_is_binarized():
    grey = torch.rand(30, 4, generator=torch.Generator().manual_seed(1))
    for how in ("threshold", "static", "dynamic"):
        alone = from_array(grey * 255, binarize=how, scale=255.0)
        beside = from_array({"x": grey * 255, "y": Y * 9}, binarize=how, scale=255.0)
        assert torch.equal(beside.rows()["x"], alone.rows())
        assert torch.equal(beside.rows()["y"], Y * 9)


def test_a_digest_says_what_the_covariates_are():
    """And that of data without any is what it was."""
    plain, mine = from_array(X), from_array({"x": X, "y": Y})
    others = [
        from_array({"x": X, "y": Y.flip(0)}),
        from_array({"x": X, "w": Y}),
        from_array({"image": X, "y": Y}),
        from_array({"x": X}),
    ]
    assert from_array({"x": X, "y": Y.clone()}).digest == mine.digest
    assert len({each.digest for each in (mine, *others)}) == 5
    assert others[-1].digest == plain.digest


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        ({}, ValueError, "without entries"),
        ({"x": X, "y": None}, TypeError, "None as entry 'y'"),
        ({"x": X, "y": 1.0}, TypeError, "one float as entry 'y'"),
        ({"x": X, "y": Y[:3]}, ValueError, r"y: got shape \(3, 2\), expected \(30, ...\)"),
        ({"x": X, "y": Y.log() * np.nan}, ValueError, "y: got a value that is not finite in row 0"),
        ({"label": LABEL[:, None], "image": X}, TypeError, "holds whole numbers.*put that first"),
        ({"x": X, "y": ["a"] * 30}, TypeError, "y: got list"),
    ],
)
def test_entries_that_are_no_data_are_refused(data, error, said):
    with pytest.raises(error, match=said):
        from_array(data)


def test_a_split_keeps_the_rows_of_all_entries_together():
    number = torch.arange(30)
    parts = split({"x": X, "y": Y, "number": number}, test=0.2, validation=5, seed=3)
    seen = []
    for part in (parts.train, parts.validation, parts.test):
        rows = part.rows()
        seen += rows["number"].tolist()
        assert torch.equal(rows["x"], X[rows["number"]])
        assert torch.equal(rows["y"], Y[rows["number"]])
        assert torch.equal(part.index, rows["number"])
    assert sorted(seen) == number.tolist()
    assert torch.equal(split(from_array(X), test=0.2, validation=5, seed=3).test.x, parts.test.x)
    with pytest.raises(ValueError, match="the same in all parts"):
        DataSet("mine", parts.train, None, from_array({"x": X, "y": Y}))


def test_data_of_several_entries_train_as_the_dict_does():
    ends = []
    for data in (from_array({"y": Y, "x": X}), {"x": X, "y": Y}):
        program = Conditional()
        run = pv.fit(program, data, steps=5, batch_size=8, progress=False)
        ends.append(state(program))
        assert run.manifest["num_data"] == 30
    assert all(map(torch.equal, *ends))


@few
def test_a_dict_is_compared_to_the_end():
    """Table, held-out scores and curves: each score is that of the verbs."""
    data = split({"x": X, "y": Y}, test=8, validation=6)
    objectives = [pv.objectives.AEVB(), pv.objectives.IWAE(2)]
    found = pv.compare(
        data, builds={"a": Conditional}, objectives=objectives, seeds=2, samples=60,
        batch_size=8, proposal="guide", num_particles=20, progress=False,
    )  # fmt: skip
    assert found.table().shape[0] == 2 and found.dataset.sizes["datum"] == 8
    run = found.runs["a", repr(objectives[0]), 1]
    held_out = data.test.rows()
    score = found.dataset.sel(model="a", objective=repr(objectives[0]), seed=1)
    assert np.allclose(score.bound, pv.elbo(run.program, held_out))
    evidence = pv.log_evidence(run.program, held_out, num_particles=20)
    assert np.allclose(score.log_evidence, evidence.value)


@few
def test_compare_makes_data_of_dicts():
    parts = types.SimpleNamespace(train={"x": X, "y": Y}, validation=None, test={"x": X, "y": Y})
    found = pv.compare(
        parts, builds={"a": Conditional}, objectives=[pv.objectives.AEVB()], seeds=1, samples=30,
        batch_size=8, proposal="guide", num_particles=20, progress=False,
    )  # fmt: skip
    assert found.dataset.sizes["datum"] == 30
    with pytest.raises(TypeError, match=r"datasets\.split\(pv"):
        pv.compare({"x": X}, builds={"a": Conditional}, objectives=[pv.objectives.AEVB()])


def test_data_checks_its_covariates():
    with pytest.raises(TypeError, match="from_array converts"):
        Data(X, covariates={"y": Y.numpy()})
    with pytest.raises(ValueError, match="which is what x is called"):
        Data(X, covariates={"x": Y})
