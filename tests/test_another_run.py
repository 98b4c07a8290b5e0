"""What makes another run: the constants of its functions; and what an optimizer must move."""

import functools
import importlib

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.recording import constants_of
from pyro_vae.runs import writer

from .saved_runs import X, fit, optim, small_vae

SCALE = 1.0


class BySource(pv.Program):
    """Its prior's scale is held as ``how`` says, and in no tensor."""

    def __init__(self, scale):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder, self.scale = nn.Linear(6, 4), nn.Linear(2, 6), scale

    def model(self, x):
        self.scored(x, self.scale)

    def scored(self, x, scale):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), scale).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            mean, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, nn.functional.softplus(scale) + 0.1).to_event(1))


class ByGlobal(BySource):
    def model(self, x):
        self.scored(x, SCALE)


def by_attribute(scale, monkeypatch):
    return BySource(scale)


def by_global(scale, monkeypatch):
    monkeypatch.setitem(globals(), "SCALE", scale)
    return ByGlobal(1.0)


def by_closure(scale, monkeypatch):
    program = BySource(1.0)
    scored = BySource.scored

    def model(x):
        scored(program, x, scale)

    return pv.Program(model, program.guide, encoder=program.encoder, decoder=program.decoder)


def by_default(scale, monkeypatch):
    program = BySource(1.0)

    def model(x, scale=scale, *, nets=program):
        BySource.scored(nets, x, scale)

    return pv.Program(model, program.guide, encoder=program.encoder, decoder=program.decoder)


def by_partial(scale, monkeypatch):
    program = BySource(1.0)
    model = functools.partial(BySource.scored, program, scale=scale)
    return pv.Program(model, program.guide, encoder=program.encoder, decoder=program.decoder)


def by_class_attribute(scale, monkeypatch):
    class Own(BySource):
        LEVEL = scale

        def model(self, x):
            self.scored(x, self.LEVEL)

    Own.__qualname__ = "Own"
    return Own(1.0)


def scaled():
    return SCALE


class ByHelper(BySource):
    def model(self, x):
        self.scored(x, self.level)

    @property
    def level(self):
        return scaled()


def by_a_function_that_a_property_calls(scale, monkeypatch):
    monkeypatch.setitem(globals(), "SCALE", scale)
    return ByHelper(1.0)


def by_a_function_of_a_closure(scale, monkeypatch):
    program = BySource(1.0)

    def scored(x):
        BySource.scored(program, x, scale)

    return pv.Program(
        lambda x: scored(x), program.guide, encoder=program.encoder, decoder=program.decoder
    )


MAKERS = [by_attribute, by_global, by_closure, by_default, by_partial, by_class_attribute,
          by_a_function_that_a_property_calls, by_a_function_of_a_closure]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)
def test_a_constant_of_the_model_is_a_setting_of_the_run(make, tmp_path, monkeypatch):
    fit(make(1.0, monkeypatch), out=tmp_path, steps=2)
    with pytest.raises(ValueError, match=r"holds another run: program\.[_sSL].* is 2.0"):
        fit(make(2.0, monkeypatch), out=tmp_path, steps=4, resume=True)
    again = fit(make(1.0, monkeypatch), out=tmp_path, steps=4, resume=True)
    assert again.manifest["steps"] == 4


@pytest.mark.parametrize(
    ("option", "value"),
    [("soft_targets", True), ("prior_precision", 2.0), ("posterior_precision", 3.0)],
)
def test_an_option_of_build_is_a_setting_of_the_run(option, value, tmp_path):
    fit(out=tmp_path, steps=2)
    with pytest.raises(ValueError, match=r"holds another run: .* the checkpoint has"):
        fit(small_vae(**{option: value}), out=tmp_path, steps=4, resume=True)


OTHER = """
import torch, pyro, pyro_vae as pv
import pyro.distributions as dist
{helper}

class Base(pv.Program):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = torch.nn.Linear(6, 4), torch.nn.Linear(2, 6)

    def model(self, x):  # {remark}
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), {scale}).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            mean, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))
"""
HELPER = "def scale():\n    return {}\n"
EDITED = {
    "a number in a base class": ({"scale": 1.5}, {"scale": 4.5}),
    "the body of a helper": ({"helper": HELPER.format(1.0)}, {"helper": HELPER.format(3.0)}),
}


@pytest.mark.parametrize("edit", EDITED)
def test_edited_code_is_another_run_and_a_remark_is_not(edit, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def program(**texts):
        scale = "scale()" if "helper" in EDITED[edit][0] else 1.5
        texts = {"helper": "", "remark": "", "scale": scale, **texts}
        name = f"other_{len(list(tmp_path.glob('*.py')))}"
        (tmp_path / f"{name}.py").write_text(OTHER.format(**texts))
        base = importlib.import_module(name).Base
        base.__module__ = "other"  # the same file, edited
        return type("Own", (base,), {"__module__": "own"})()

    before, after = EDITED[edit]
    fit(program(**before), out=tmp_path / "run", steps=2)
    again = fit(program(**before, remark="said"), out=tmp_path / "run", steps=4, resume=True)
    assert again.manifest["steps"] == 4
    with pytest.raises(ValueError, match=r"holds another run: program\.what (model|scale) does"):
        fit(program(**after), out=tmp_path / "run", steps=6, resume=True)


def test_what_a_function_works_with():
    held = 3

    def inner(a, b=2, *, c="c"):
        return held + SCALE + len(a.SHAPE) + b

    names = constants_of(inner)
    assert names == {"held": 3, "SCALE": SCALE, "b": 2, "c": "c"}  # and no attribute's name
    given = constants_of(functools.partial(inner, 7, c="d"))
    assert given == {**names, "c": "d", "argument 0": 7}
    assert constants_of(len) == {} == constants_of(BySource)


# --- optimizers and schedules ---------------------------------------------------------------------


def test_an_optimizer_of_other_parameters_is_refused():
    elsewhere = [nn.Parameter(torch.zeros(3))]
    with pytest.raises(ValueError, match="Adam with 1 parameters that are not the program's"):
        fit(optimizer=lambda parameters: optim.Adam(elsewhere))
    with pytest.raises(ValueError, match="SGD with 1 parameters that are not the program's"):
        fit(optimizer=lambda parameters: optim.SGD([*parameters, *elsewhere], lr=0.1))


def test_an_optimizer_of_some_parameters_is_refused():
    with pytest.raises(ValueError, match=r'without "likelihood.*left out.*requires_grad_\(False\)'):
        fit(optimizer=lambda parameters: optim.SGD(parameters[-1:], lr=0.1))
    program = small_vae()
    program.posterior.requires_grad_(False)
    before = {n: p.clone() for n, p in program.posterior.named_parameters()}
    fit(program, optimizer=lambda parameters: optim.SGD(parameters, lr=0.1), steps=2)
    assert all(torch.equal(p, before[n]) for n, p in program.posterior.named_parameters())


def test_groups_with_rates_of_their_own_are_welcome():
    def optimizer(parameters):
        return optim.SGD([{"params": parameters[:2], "lr": 0.5}, {"params": parameters[2:]}], lr=1)

    assert fit(optimizer=optimizer, steps=2).manifest["optimizer_options"]["lr"] == 0.5


@pytest.mark.parametrize("made", [None, 0.5, "StepLR"])
def test_a_schedule_that_returns_no_scheduler_is_refused(made):
    with pytest.raises(TypeError, match=r"schedule returned .*expected a learning-rate scheduler"):
        fit(schedule=lambda optimizer: made)


def test_a_schedule_of_another_optimizer_is_refused():
    other = optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1)
    with pytest.raises(ValueError, match="StepLR of another optimizer"):
        fit(schedule=lambda optimizer: optim.lr_scheduler.StepLR(other, 2))


@pytest.mark.parametrize("whole", [np.int64(4), np.int32(4), 4, True + 3])
def test_whole_numbers_of_any_kind_count_updates(whole, tmp_path, monkeypatch):
    saved = []
    write = writer.write

    def note(folder, content):
        saved.append(content["progress"]["steps"])
        write(folder, content)

    monkeypatch.setattr(writer, "write", note)
    fit(out=tmp_path, checkpoint_every=whole, steps=9)
    assert saved[:2] == [4, 8]


# --- what is handed out ---------------------------------------------------------------------------


def test_nothing_that_is_handed_out_is_a_parameter_itself():
    class Shared(pv.Program):
        def __init__(self):
            super().__init__()
            self.place, self.level = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))

        def model(self, x):
            pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                law = dist.Normal(self.level.expand(z.shape), 1.0).to_event(1)
                pyro.sample("x", law, obs=x)

        def guide(self, x):
            pyro.sample("w", dist.Delta(self.place, event_dim=1))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Delta(self.level.expand(x.shape), event_dim=1))

    program, x = Shared(), torch.randn(1, 3)
    before = {name: p.detach().clone() for name, p in program.named_parameters()}
    for handed in (
        pv.encode(program, x, shared=True),
        pv.encode(program, x),
        pv.encode(program, x, num_draws=1),
        pv.reconstruct(program, x),
        pv.sample(program, 1, like=x, mean=True),
        pv.elbo(program, x),
    ):
        assert not handed.requires_grad
        handed.mul_(100.0)
    assert all(torch.equal(p, before[name]) for name, p in program.named_parameters())


def test_the_mean_bound_of_a_run_has_the_error_of_the_shared_draw():
    """Over many seeds, the mean held-out bound scatters as its standard error says."""
    from pyro_vae.evidence.bound import elbo_and_error

    class Location(pv.Program):
        """w ~ N(0, 1) moves every row; q(w) = N(0, 1): the bound hangs on one draw of w."""

        def __init__(self):
            super().__init__()
            self.mean = nn.Parameter(torch.zeros(()))

        def model(self, x):
            w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("data", 200, subsample_size=len(x)):
                pyro.sample("x", dist.Normal(w, 1.0), obs=x)

        def guide(self, x):
            pyro.sample("w", dist.Normal(self.mean, 1.0))

    program = Location()
    x = torch.randn(200, generator=torch.Generator().manual_seed(1))
    found = [elbo_and_error(program, x, seed=seed) for seed in range(60)]
    means = torch.stack([values.mean() for values, _ in found])
    errors = torch.tensor([error for _, error in found])
    # E over x and w; the data are the same in all, so their share is not in the scatter.
    of_data = float(found[0][0].var() / len(x)) ** 0.5
    shared = (errors.square() - of_data**2).clamp_min(0).mean().sqrt()
    assert 0.7 < means.std() / shared < 1.4
    assert errors.mean() > 2 * of_data  # the mutant: the rows as if they were independent
    history = pv.fit(
        program, x, steps=1, lr=1e-9, validation=x, evaluate_every=1, progress=False
    ).history
    assert history.validation_bound_standard_error.iloc[-1] > 2 * of_data


def test_the_error_without_shared_latents_is_that_of_the_data():
    run = fit(steps=1, validation=X, evaluate_every=1)
    values = pv.elbo(run.program, X, seed=3)
    error = float(values.std()) / len(X) ** 0.5
    assert run.history.validation_bound_standard_error.iloc[-1] == pytest.approx(error, rel=1e-6)
