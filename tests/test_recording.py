"""What an object was made from: recorded, compared, shown, and asked for by fit and compare."""

import copy
import dataclasses
import functools
import pickle
import threading
from dataclasses import dataclass

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO
from torch import nn

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae
from pyro_vae.networks import MLP
from pyro_vae.objectives import AEVB, IWAE, Objective
from pyro_vae.objectives.base import name_of, objective_record
from pyro_vae.program.parts import Posterior, Prior
from pyro_vae.recording import Recorded, differences, form_of, record_of, shown

DATA = torch.bernoulli(torch.full((30, 6), 0.4), generator=torch.Generator().manual_seed(0))
SCALE = 2.0


def program():
    torch.manual_seed(0)
    return bernoulli_vae.build(6, latent_dim=2, hidden_dim=4)


class Tempered(AEVB):
    """Stores its argument under another name, as most constructors of users do."""

    def __init__(self, temperature, estimator="A", **options):
        super().__init__(estimator, **options)
        self.t = temperature


class Holding(Objective):
    """Takes anything, and hides it."""

    def __init__(self, argument=None):
        super().__init__()
        self._held = argument

    def loss_per_datum(self, program, x):
        return AEVB().terms(program, x, None)[0]


def fit(objective, out, **options):
    return pv.fit(
        program(), DATA, objective, steps=2, batch_size=10, engine="eager", out=out,
        progress=False, **options,
    )  # fmt: skip


# --- the record -----------------------------------------------------------------------------------


class Wide(Recorded):
    def __init__(self, a, /, b, *rest, c=3, **options):
        self.everything = (a, b, rest, c, options)


class Mutating(Recorded):
    def __init__(self, options):
        self.steps = options.pop("steps")
        options["rate"] = 7


def test_every_kind_of_argument_is_recorded():
    record = record_of(Wide(1, 2, 4, 5, c=6, d=7))
    assert record["arguments"] == {"a": 1, "b": 2, "rest": (4, 5), "c": 6, "d": 7}
    assert record_of(Wide(1, b=2))["arguments"] == {"a": 1, "b": 2, "c": 3}
    assert record_of(Wide(1, b=2))["defaults"] == ["c"]
    assert shown(record_of(Wide(1, 2, d=None))) == "Wide(a=1, b=2, d=None)"


def test_a_constructor_that_changes_what_it_is_given_changes_no_record():
    assert record_of(Mutating({"steps": 5}))["arguments"] == {"options": {"steps": 5}}


def test_what_is_changed_outside_later_changes_no_record():
    weights = torch.zeros(2)
    before = Holding(weights)
    weights += 1
    assert not differences(record_of(before), record_of(Holding(torch.zeros(2))))
    assert differences(record_of(before), record_of(Holding(weights)))


def test_a_subclass_is_recorded_by_its_own_arguments():
    assert repr(Tempered(0.5)) == "Tempered(temperature=0.5)"
    assert repr(Tempered(0.5, num_particles=3)) == "Tempered(temperature=0.5, num_particles=3)"

    class Inherits(Tempered):
        pass

    assert repr(Inherits(0.5, "B")) == "Inherits(temperature=0.5, estimator='B')"


def test_a_dataclass_is_recorded():
    @dataclass(repr=False, eq=False)
    class Fields(Recorded):
        alpha: float = 1.0

    assert record_of(Fields(2.0))["arguments"] == {"alpha": 2.0}


def pickled(made):
    return pickle.loads(pickle.dumps(made))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_copies_keep_the_record(copied):
    for made in (AEVB("A", 3), pv.priors.StandardNormal(2, 0.5), MLP(2, 3, 4)):
        assert record_of(copied(made)) == record_of(made)


def test_an_attribute_that_is_set_later_is_in_the_record():
    objective = AEVB()
    objective.num_particles = 10
    objective.refresh_every = 2
    assert repr(objective) == "AEVB(num_particles=10, refresh_every=2)"
    assert repr(copy.deepcopy(objective)) == repr(objective)
    assert repr(AEVB()) == "AEVB()"


def test_a_new_without_a_record_says_so():
    class Silent(Holding):
        def __new__(cls, *args):
            return object.__new__(cls)

    assert repr(Silent()) == "Silent(...)"
    with pytest.raises(TypeError, match=r"Silent holds no record of its arguments: subclass"):
        record_of(Silent())
    with pytest.raises(ValueError, match=r"cannot be compared: Silent holds no record"):
        pv.objectives.base.names_of([Silent(), Silent()])


class Networked(Posterior):
    def __init__(self, network):
        super().__init__()
        self.own = network

    def forward(self, x):
        return dist.Normal(self.own(x), 1.0)


def test_a_module_that_is_an_argument_is_registered_once():
    part = Networked(nn.Linear(3, 2))
    assert [name for name, _ in part.named_parameters()] == ["own.weight", "own.bias"]
    assert list(part.state_dict()) == ["own.weight", "own.bias"]
    assert len(list(part.modules())) == 2
    assert "network=<Linear " in repr(part)


# --- forms ----------------------------------------------------------------------------------------


def closing_over(value):
    return lambda x: x * value


def by_global(x):
    return x * SCALE


def same_by_another_global(x):
    return x * LIMIT


LIMIT = 3.0


class Config:
    def __init__(self, rate):
        self.rate = rate


DIFFERENT = {
    "number": (0.5, 0.7),
    "bool and number": (True, 1),
    "list and tuple": ([1, 2], (1, 2)),
    "dict": ({"a": 1, "b": [2]}, {"a": 1, "b": [3]}),
    "dict of numbers": ({1: "a"}, {2: "a"}),
    "tensor": (torch.zeros(3), torch.tensor([0.0, 0.0, 1e-9])),
    "tensor's dtype": (torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
    "tensor's shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "array": (np.arange(3), np.arange(3) + 1),
    "objective": (AEVB("A"), AEVB("B")),
    "objective's own argument": (Tempered(1.0), Tempered(2.0)),
    "class": (AEVB, IWAE),
    "lambda": (lambda x: x, lambda x: 2 * x),
    "closure": (closing_over(1), closing_over(2)),
    "closure over a tensor": (closing_over(torch.ones(2)), closing_over(torch.zeros(2))),
    "global": (by_global, same_by_another_global),
    "partial": (functools.partial(by_global, x=1), functools.partial(by_global, x=2)),
    "builtin": (torch.exp, torch.sin),
    "method": (Config(1).__init__, Config(2).__init__),
    "object": (Config(1), Config(2)),
    "set": ({1, 2}, {1, 3}),
    "module": (nn.Linear(2, 2), nn.Linear(2, 2)),
    "module's structure": (nn.Dropout(0.1), nn.Dropout(0.2)),
    "part's values": (MLP(2, 3, 4), MLP(2, 3, 4)),
    "part's arguments": (pv.priors.StandardNormal(2), pv.priors.StandardNormal(2, 2.0)),
    "dtype": (torch.float32, torch.float64),
    "generator": (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
    "long list": (list(range(5000)), [*range(4999), 0]),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_arguments_are_told_apart_and_equal_ones_are_not(name):
    one, other = map(Holding, DIFFERENT[name])
    again = Holding(DIFFERENT[name][0])
    assert differences(record_of(one), record_of(again)) == []
    (line,) = differences(record_of(one), record_of(other))
    assert line.startswith("argument")
    left, right = line.partition(" is ")[2].split(" and ")
    assert left != right


@pytest.mark.parametrize(
    "held",
    [
        threading.Lock(),
        [threading.Lock()],
        {1: threading.Lock()},
        functools.partial(print, threading.Lock()),
        closing_over(threading.Lock()),
        Holding(threading.Lock()),
        {1: Holding(threading.Lock())},
        (number for number in ()),
    ],
)
def test_what_cannot_be_compared_equals_nothing(held):
    record = record_of(Holding(held))
    (line,) = differences(record, record)
    assert "cannot be compared" in line and line.startswith("argument")


def test_numbers_are_compared_by_value():
    for one, other in ((10, 10.0), (np.int64(3), 3), (float("nan"), float("nan"))):
        assert not differences(form_of(one), form_of(other))


def test_a_circle_ends():
    around = []
    around.append(around)
    assert not differences(form_of(around), form_of(around))


# --- what asks for it -----------------------------------------------------------------------------


def test_resume_with_another_argument_is_refused_by_its_name(tmp_path):
    fit(Tempered(0.5), tmp_path)
    with pytest.raises(ValueError, match=r"temperature is 0.7, the checkpoint has 0.5"):
        fit(Tempered(0.7), tmp_path, resume=True)
    fit(Tempered(0.5), tmp_path, resume=True)


def test_resume_with_another_argument_of_an_argument_is_refused(tmp_path):
    fit(Holding({"inner": AEVB(kl_warmup=3)}), tmp_path)
    place = r"objective\.argument\.inner\.kl_warmup is 4, the checkpoint has 3"
    with pytest.raises(ValueError, match=place):
        fit(Holding({"inner": AEVB(kl_warmup=4)}), tmp_path, resume=True)
    fit(Holding({"inner": AEVB(kl_warmup=3)}), tmp_path, resume=True)


def test_resume_with_what_cannot_be_compared_is_refused(tmp_path):
    fit(Holding(threading.Lock()), tmp_path)
    with pytest.raises(ValueError, match=r"argument is <lock>, which cannot be compared"):
        fit(Holding(threading.Lock()), tmp_path, resume=True)


def test_resume_with_another_argument_of_pyros_elbo_is_refused(tmp_path):
    options = {"engine": "pyro", "out": tmp_path, "steps": 2, "progress": False}
    pv.fit(program(), DATA, RenyiELBO(alpha=0.5, num_particles=2), **options)
    with pytest.raises(ValueError, match=r"objective\.alpha is 0.2, the checkpoint has 0.5"):
        pv.fit(program(), DATA, RenyiELBO(alpha=0.2, num_particles=2), resume=True, **options)
    used = RenyiELBO(alpha=0.5, num_particles=2)
    pv.fit(program(), DATA, used, engine="pyro", steps=1, progress=False)
    pv.fit(program(), DATA, used, resume=True, **options)
    assert name_of(used) == "RenyiELBO(alpha=0.5, num_particles=2)"
    assert not differences(objective_record(used), objective_record(copy.copy(used)))


class PlainPrior(nn.Module):
    """A user's own, whose record is what it holds."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self):
        return dist.Normal(torch.zeros(2), self.width).to_event(1)


class RecordedPrior(Prior):
    """Holds nothing under its argument's name."""

    def __init__(self, width):
        super().__init__()
        self._inner = float(width)

    def forward(self):
        return dist.Normal(torch.zeros(2), self._inner).to_event(1)


def with_prior(prior):
    torch.manual_seed(0)
    return bernoulli_vae.build(6, latent_dim=2, hidden_dim=4, prior=prior)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda width: pv.priors.StandardNormal(2, width), "precision"),
        (RecordedPrior, "width"),
        (PlainPrior, "width"),
    ],
)
def test_resume_with_a_part_of_another_argument_is_refused(tmp_path, make, name):
    options = {"steps": 2, "engine": "eager", "progress": False}
    pv.fit(with_prior(make(1.0)), DATA, out=tmp_path, **options)
    with pytest.raises(ValueError, match=rf"prior\.{name} is 2.0, the checkpoint has 1.0"):
        pv.fit(with_prior(make(2.0)), DATA, out=tmp_path, resume=True, **options)
    changed = pv.load(tmp_path, with_prior(make(1.0)))
    assert changed.manifest["steps"] == 2
    with pytest.warns(pv.PyroVaeWarning, match=rf"prior\.{name} is 2.0, was 1.0"):
        pv.load(tmp_path, with_prior(make(2.0)))


def test_compare_tells_two_arguments_apart_and_refuses_one_twice():
    names = pv.objectives.base.names_of([Tempered(0.5), Tempered(0.7), AEVB()])
    assert names == ["Tempered(temperature=0.5)", "Tempered(temperature=0.7)", "AEVB()"]
    digits = pv.datasets.load("digits")
    builds = {"bernoulli": lambda: bernoulli_vae.build(64, latent_dim=2, hidden_dim=4)}
    for twice in ([AEVB(), AEVB("B")], [Tempered(0.5), Tempered(temperature=0.5)]):
        with pytest.raises(ValueError, match=r"expected different ones: .* is there twice"):
            pv.compare(digits, builds=builds, objectives=twice)
        with pytest.raises(ValueError, match=r"expected different ones: .* is there twice"):
            pv.gradient_report(program(), DATA, twice)
    locks = [Holding(threading.Lock()), Holding(threading.Lock())]
    with pytest.raises(ValueError, match="which cannot be compared"):
        pv.compare(digits, builds=builds, objectives=locks)


def test_a_table_has_a_row_for_each_argument():
    digits = pv.datasets.load("digits")
    digits = dataclasses.replace(digits, validation=None, test=digits.test[:20])
    result = pv.compare(
        digits, builds={"one": lambda: bernoulli_vae.build(64, latent_dim=2, hidden_dim=4)},
        objectives=[Tempered(0.5), Tempered(0.7)], seeds=1, samples=100, proposal="guide",
        num_particles=5, progress=False, optimizer=torch.optim.Adagrad,
    )  # fmt: skip
    labels = [objective for _, objective in result.table().index]
    assert labels == ["Tempered(temperature=0.5)", "Tempered(temperature=0.7)"]
