"""model(x, y): entries of a dict by name, whatever stands around the two functions."""

import copy
import functools
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_vae as pv
from pyro_vae.program.arguments import Signature

from .conditional import BUILDS, DATA, ByHand, ByName, Laws, forwarding, parameters, rows


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_by_name_is_the_whole_dict_to_the_last_digit(build):
    """Whatever stands around the functions: trained, scored, sampled."""
    data = rows()
    reference, program = ByHand(), build()
    for each in (reference, program):
        pv.fit(each, data, steps=5, batch_size=16, engine="pyro", progress=False)

    for mine, theirs in zip(parameters(program), parameters(reference), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(pv.elbo(program, data), pv.elbo(reference, data))
    for verb in (pv.encode, pv.reconstruct):
        assert torch.equal(verb(program, data), verb(reference, data))
    drawn = [pv.sample(each, 5, like=data) for each in (program, reference)]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_captured_steps_take_names(engine):
    data, ends = rows(), []
    for build in (ByHand, ByName, BUILDS["handlers"]):
        program = build()
        run = pv.fit(program, data, steps=5, batch_size=16, engine=engine, progress=False)
        assert run.manifest["engine"] != "pyro"
        ends.append(parameters(program))
    for mine in ends[1:]:
        assert all(map(torch.equal, mine, ends[0]))


@pytest.mark.filterwarnings("ignore::pyro_vae.errors.PyroVaeWarning")
def test_evidence_chains_and_arviz_take_names():
    data = rows(6)
    reference, program = ByHand(), ByName()
    for options in ({}, {"proposal": "hmc", "num_draws": 40, "warmup": 20}):
        values = [
            pv.log_evidence(each, data, num_particles=20, **options).value
            for each in (program, reference)
        ]
        assert torch.equal(*values)
    results = [pv.to_inference_data(each, data, num_draws=10) for each in (program, reference)]
    for group in ("posterior", "posterior_predictive", "observed_data", "constant_data"):
        one, other = (dict(result[group].data_vars) for result in results)
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one), group


def test_check_looks_at_a_program_of_names():
    report = pv.check(ByName(), rows())
    assert report.num_rows == 40 and {site.name for site in report.sites} == {"z", "x"}


def test_each_function_is_given_what_it_takes():
    """A guide(x) beside a model(x, y), and a model(x, y) that calls the whole one above it."""

    class GuideOfX(ByHand):
        def model(self, x, y):
            assert isinstance(x, torch.Tensor)
            super().model({"x": x, "y": y})

        def guide(self, x):
            assert isinstance(x, torch.Tensor)
            self.laws.recognise(x, torch.zeros(len(x), 3))

    pv.fit(GuideOfX(), rows(), steps=3, progress=False)


def test_a_dict_is_whole_where_there_is_one_parameter():
    seen = []

    class Whole(ByHand):
        def model(self, batch, scale=1.0):  # "x" and "y" are no parameters
            seen.append(sorted(batch))
            super().model(batch)

    pv.fit(Whole(), rows(), steps=1, engine="pyro", progress=False)
    assert all(names == ["x", "y"] for names in seen) and seen


@pytest.mark.parametrize(
    ("function", "shown", "known"),
    [
        (lambda x, y=None: 0, "(x, y=...)", True),
        (lambda x, **rest: 0, "(x, **)", True),
        (lambda *args, **kwargs: 0, "(**)", False),
        (forwarding(lambda x, y: 0), "(x, y)", True),
        (forwarding(print), "(**)", False),
        (functools.partial(lambda net, x, y: 0, 3), "(x, y)", True),
        (functools.partial(poutine.scale(lambda net, x, y: 0, scale=1.0), 3), "(x, y)", True),
        (functools.wraps(lambda x, y: 0)(lambda x: 0), "(x)", True),
        (poutine.trace(lambda x, y: 0), "(x, y)", True),
        (poutine.scale(nn.Linear(2, 2), scale=1.0), "(input)", True),
    ],
)
def test_what_a_function_takes(function, shown, known):
    """A wrapper with parameters of its own is taken at its word."""
    signature = Signature.of(function)
    assert str(signature) == shown and signature.known == known


def test_positions_names_and_dicts_are_one_call():
    """As Pyro's SVI makes them, with parameters announced."""
    data, program = rows(), ByName()
    calls = [
        ((data["x"], data["y"]), {}),
        ((), data),
        ((data["x"],), {"y": data["y"]}),
        ((data,), {}),
    ]
    values = []
    for args, kwargs in calls:
        pyro.set_rng_seed(1)
        trace = poutine.trace(program.guide).get_trace(*args, **kwargs)
        assert {"program$$$laws.enc.weight"} < set(trace.nodes)
        values.append(trace.nodes["z"]["value"])
    assert all(torch.equal(value, values[0]) for value in values)


def test_a_module_of_several_arguments_is_to_be_wrapped():
    class Stranger(Laws):
        def model(self, x, y):
            self.observe(x, y)

        def guide(self, x, y):
            self.recognise(x, y)

    with pytest.raises(TypeError, match=r"by name, expected a pv.Program.*pv.Program\(module\)"):
        pv.elbo(Stranger(), DATA)
    assert pv.elbo(pv.Program(Stranger()), DATA).shape == (40,)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
@pytest.mark.parametrize("used", [False, True])
def test_copies_take_names(copied, used):
    program = ByName()
    if used:
        pv.elbo(program, DATA)
    twin = copied(program)
    assert torch.equal(pv.elbo(twin, DATA), pv.elbo(program, DATA))
    pv.fit(twin, DATA, steps=2, progress=False)
    assert not all(map(torch.equal, parameters(twin), parameters(program)))


@pytest.mark.parametrize("name", ["functions", "handlers", "modules that are functions"])
def test_copies_of_functions_take_names(name):
    program = BUILDS[name]()
    pv.elbo(program, DATA)
    twin = copy.deepcopy(program)
    before = parameters(program)
    pv.fit(twin, DATA, steps=2, progress=False)
    assert all(map(torch.equal, parameters(program), before))
    assert not any(map(torch.equal, parameters(twin), before))


def test_a_run_of_names_is_resumed_and_loaded(tmp_path):
    whole = pv.fit(ByName(), DATA, steps=6, batch_size=16, progress=False)
    pv.fit(ByName(), DATA, steps=3, batch_size=16, progress=False, out=tmp_path / "run")
    run = pv.fit(
        ByName(), DATA, steps=6, batch_size=16, progress=False, out=tmp_path / "run", resume=True
    )
    assert all(map(torch.equal, parameters(run.program), parameters(whole.program)))
    loaded = pv.load(tmp_path / "run", program=ByName())
    assert torch.equal(pv.elbo(loaded.program, DATA), pv.elbo(whole.program, DATA))


def test_replicas_take_names():
    data = rows()
    together = pv.fit(
        [ByName(), ByName()], data, steps=4, batch_size=16, seed=[0, 1], progress=False
    )
    for seed, run in enumerate(together):
        alone = pv.fit(ByName(), data, steps=4, batch_size=16, seed=seed, progress=False)
        for mine, theirs in zip(parameters(run.program), parameters(alone.program), strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        ({"x": DATA["x"]}, TypeError, r'entries "x", expected those of model\(x, y\).*"y" too'),
        ({**DATA, "index": DATA["y"]}, TypeError, r'entry "index" and neither model\(x, y\)'),
        (DATA["x"], TypeError, r"one tensor and model\(x, y\) takes 2: pass a dict"),
        ({**DATA, "y": None}, TypeError, 'data "y" is None.*leave it out where y has a default'),
        ({**DATA, "y": 3.0}, TypeError, r"partial\(model, y=...\)"),
        ({**DATA, "y": "a"}, TypeError, "one str, expected a tensor with a row for each datum"),
        ({**DATA, "y": torch.zeros(3)}, ValueError, "common first dimension"),
        ({**DATA, 3: DATA["y"]}, TypeError, "expected a text"),
    ],
)
def test_what_cannot_be_passed_is_refused_in_words(data, error, said):
    for verb in (pv.check, pv.elbo, functools.partial(pv.fit, steps=1)):
        with pytest.raises(error, match=said):
            verb(ByName(), data)


def test_an_automatic_guide_is_called_as_its_model_is():
    """For latents that all data share: regression with y ~ x w, by name, whole and by SVI."""
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    objective = pv.objectives.AEVB("A")
    data, ends = {"x": x, "y": x @ torch.tensor([1.0, -2.0, 0.5])}, []

    def by_name(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", 50, subsample_size=len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    for model in (by_name, lambda batch: by_name(batch["x"], batch["y"])):
        program = pv.Program(model, AutoNormal(model))
        pv.fit(program, data, objective, steps=8, batch_size=25, progress=False)
        ends.append([*parameters(program), pv.elbo(program, data)])
    assert all(map(torch.equal, *ends))
    program = pv.Program(by_name, AutoNormal(by_name))
    svi = SVI(program.model, program.guide, pyro.optim.Adam({}), objective)
    assert svi.step(x, data["y"]) > 0
