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
from pyro.infer import SVI, Trace_ELBO, config_enumerate
from pyro.nn import PyroModule
from torch import nn

import pyro_vae as pv
from pyro_vae.program.arguments import Signature


def rows(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(count, 6, generator=generator), torch.rand(count, 3, generator=generator))
    return {"x": x, "y": y}


class Laws(nn.Module):
    """A conditional VAE's networks and laws, without an opinion on how data are passed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enc, self.dec = nn.Linear(9, 4), nn.Linear(5, 6)

    def observe(self, x, y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            law = dist.Normal(self.dec(torch.cat([z, y], -1)), 1.0).to_event(1)
            pyro.sample("x", law, obs=x)

    def recognise(self, x, y):
        with pyro.plate("data", len(y)):
            mean, scale = self.enc(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))


class ByHand(pv.Program):
    """The dict whole."""

    def __init__(self):
        super().__init__()
        self.laws = Laws()

    def model(self, x):
        self.laws.observe(x.get("x"), x["y"])

    def guide(self, x):
        self.laws.recognise(x["x"], x["y"])


class ByName(ByHand):
    def model(self, x, y):
        self.laws.observe(x, y)

    def guide(self, x, y):
        self.laws.recognise(x, y)


class Optional(ByHand):
    def model(self, x=None, y=None, scale=1.0):
        self.laws.observe(x, y)

    def guide(self, *, y, x):
        self.laws.recognise(x, y)


class Handled(ByHand):
    """Handlers as decorators of methods."""

    @poutine.scale(scale=1.0)
    def model(self, x, y):
        self.laws.observe(x, y)

    @config_enumerate
    def guide(self, x, y):
        self.laws.recognise(x, y)


class Static(ByHand):
    """Functions of the class that need no self but what they close over."""

    def model(self, x, /, y):
        self.laws.observe(x, y)

    def guide(self, **entries):
        self.laws.recognise(**entries)


def stranger(base):
    class Stranger(base):
        def __init__(self):
            super().__init__()
            self.laws = Laws()

        def model(self, x, y):
            self.laws.observe(x, y)

        def guide(self, x, y):
            self.laws.recognise(x, y)

    return pv.Program(Stranger())


def forwarding(function):
    def forward(*args, **kwargs):
        return function(*args, **kwargs)

    return forward


def around(wrap):
    def build():
        laws = Laws()

        def model(x, y):
            laws.observe(x, y)

        def guide(x, y):
            laws.recognise(x, y)

        return pv.Program(wrap(model), wrap(guide), laws=laws)

    return build


class Forward(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, y):
        return self.function(x, y)


def modules():
    laws = Laws()
    return pv.Program(Forward(laws.observe), Forward(laws.recognise), laws=laws)


def partials():
    laws = Laws()

    def model(net, x, y, scale):
        net.observe(x, y)

    return pv.Program(
        functools.partial(model, laws, scale=2.0), functools.partial(laws.recognise), laws=laws
    )


BUILDS = {
    "subclass": ByName,
    "defaults and keywords": Optional,
    "decorated methods": Handled,
    "positional and any": Static,
    "module": lambda: stranger(nn.Module),
    "PyroModule": lambda: stranger(PyroModule),
    "functions": around(lambda f: f),
    "handlers": around(lambda f: poutine.scale(poutine.block(f, hide=["w"]), scale=1.0)),
    "forwarding": around(lambda f: forwarding(poutine.scale(forwarding(f), scale=1.0))),
    "wraps": around(lambda f: functools.wraps(f)(forwarding(f))),
    "modules that are functions": modules,
    "partials": partials,
}


def parameters(program):
    return [p.detach().clone() for p in program.parameters()]


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
    for options in ({}, {"proposal": "hmc", "num_draws": 20, "warmup": 10}):
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


def stepped(loss, call, build=ByName, steps=4):
    program = build()
    pyro.set_rng_seed(3)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), loss)
    args, kwargs = call
    losses = [svi.step(*args, **kwargs) for _ in range(steps)]
    losses.append(svi.evaluate_loss(*args, **kwargs))
    return losses, parameters(program)


DATA = rows()
CALLS = {
    "positions": ((DATA["x"], DATA["y"]), {}),
    "names": ((), DATA),
    "mixed": ((DATA["x"],), {"y": DATA["y"]}),
    "dict": ((DATA,), {}),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    "objective",
    [
        pv.objectives.AEVB("A"),
        pv.objectives.IWAE(3),
        pv.objectives.StickingTheLanding(),
        pv.objectives.WakeSleep(),
        pv.objectives.MonteCarloEM(),
    ],
    ids=repr,
)
def test_our_objectives_take_the_arguments_of_a_step_of_svi(objective, call):
    """As the dict, whole, gives them."""
    ends = [
        stepped(copy.deepcopy(objective), call),
        stepped(copy.deepcopy(objective), ((DATA,), {}), ByHand),
    ]
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-6)
    for mine, theirs in zip(ends[0][1], ends[1][1], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_pyro_s_own_objective_takes_them_too():
    ends = [stepped(Trace_ELBO(), call)[0] for call in CALLS.values()]
    assert all(end == ends[0] for end in ends)
    ours = stepped(pv.objectives.AEVB("A"), CALLS["positions"])[0]
    assert ours == pytest.approx(ends[0], rel=1e-5)


def test_what_is_no_row_is_the_same_for_every_particle():
    """Numbers, None and tensors of other lengths, as the annealing factor of a step."""
    met = []

    class Annealed(ByName):
        def model(self, x, y, factor, table, note=None):
            met.append((float(factor), len(table), note))
            with poutine.scale(scale=1.0):
                self.laws.observe(x, y)

        def guide(self, x, y, factor, table, note=None):
            self.laws.recognise(x, y)

    call = ((DATA["x"], DATA["y"], torch.tensor(0.5), torch.ones(3)), {"note": "a"})
    losses, _ = stepped(pv.objectives.IWAE(4), call, Annealed)
    reference, _ = stepped(pv.objectives.IWAE(4), ((DATA,), {}), ByHand)
    assert losses == pytest.approx(reference, rel=1e-6)
    assert set(met) == {(0.5, 3, "a")}


def test_plain_functions_take_them_inside_svi():
    laws = Laws()

    def model(x, y):
        pyro.module("laws", laws)
        laws.observe(x, y)

    pyro.set_rng_seed(3)
    optimizer = pyro.optim.Adam({"lr": 0.01})
    svi = SVI(model, laws.recognise, optimizer, pv.objectives.AEVB("A"))
    losses = [svi.step(DATA["x"], y=DATA["y"]) for _ in range(4)]
    pyro.clear_param_store()
    reference, _ = stepped(pv.objectives.AEVB("A"), ((DATA,), {}), ByHand)
    assert losses == pytest.approx(reference[:4], rel=1e-6)


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


def test_what_svi_is_not_given_is_said():
    program = ByName()
    svi = SVI(program.model, program.guide, pyro.optim.Adam({}), pv.objectives.AEVB())
    with pytest.raises(TypeError, match="none is a tensor"):
        svi.step(None, 1.0)
    with pytest.raises(TypeError, match=r"data\.rows"):
        svi.step(pv.datasets.from_array(DATA["x"]), DATA["y"])


# --- covariates alone -----------------------------------------------------------------------------


@pytest.mark.parametrize("build", [ByHand, Optional])
@pytest.mark.parametrize("mean", [False, True])
def test_covariates_alone_give_what_rows_give(build, mean):
    """p(x | y) asks for no x: the same draws at the same seed."""
    program, y = build(), {"y": DATA["y"]}
    assert torch.equal(
        pv.sample(program, 7, like=y, mean=mean), pv.sample(program, 7, like=DATA, mean=mean)
    )


def test_draws_given_covariates_have_the_conditional_s_moments():
    """p(x | y) of a linear model is Gaussian: mean W_y y + b, covariance W_z W_z' + 1."""
    program = Optional()
    y = torch.tensor([[0.2, 0.9, 0.4]])
    x = pv.sample(program, 40_000, like={"y": y}).double()
    w, b = (p.detach().double() for p in (program.laws.dec.weight, program.laws.dec.bias))
    mean, covariance = w[:, 2:] @ y[0].double() + b, w[:, :2] @ w[:, :2].T + torch.eye(6)
    error = (x.mean(0) - mean).abs() / (covariance.diag() / len(x)).sqrt()
    assert error.max() < 4.5
    torch.testing.assert_close(x.T.cov().float(), covariance.float(), rtol=0, atol=0.06)


def test_labels_among_covariates_stay_whole_numbers():
    class Labelled(ByHand):
        def model(self, label, x=None):
            assert label.dtype == torch.uint8
            self.laws.observe(x, nn.functional.one_hot(label.long(), 3).float())

        def guide(self, label, x):
            self.laws.recognise(x, nn.functional.one_hot(label.long(), 3).float())

    label = torch.tensor([0, 1, 2], dtype=torch.uint8)
    assert pv.sample(Labelled(), 6, like={"label": label, "x": torch.zeros(3, 6)}).shape == (6, 6)


def test_a_model_that_needs_x_says_so():
    with pytest.raises(ValueError, match=r'expected that it does without "x".*x=None or x.get'):
        pv.sample(ByName(), 3, like={"y": DATA["y"]})


def test_the_site_that_observes_is_found_by_the_guide():
    """Its name is not that of the parameter, and the guide has all but it."""

    class Completion(ByHand):
        def model(self, xs, ys=None):
            with pyro.plate("data", len(xs)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                law = dist.Normal(self.laws.dec(torch.cat([z, xs], -1)), 1.0).to_event(1)
                pyro.sample("y", law, obs=ys)

        def guide(self, xs, ys=None):
            with pyro.plate("data", len(xs)):
                pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    assert pv.sample(Completion(), 5, like={"xs": DATA["y"]}).shape == (5, 6)
