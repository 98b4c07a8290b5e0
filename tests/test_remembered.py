"""Python values that change while a program is trained: no graph keeps what they were before."""

import types

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn, optim

import pyro_vae as pv
from pyro_vae import engine
from pyro_vae.objectives import AEVB
from pyro_vae.program.remembered import changed, fixed_tensors, remembered

from .programs import Parts, normal

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ENGINES = ["eager", pytest.param("compiled", marks=pytest.mark.slow)]


class Shifted(Parts):
    """A normal model whose mean is shifted by a number, a buffer and an entry of a dict."""

    def __init__(self, after=None):
        torch.manual_seed(0)
        super().__init__(encoder=(3, 2), decoder=(2, 3))
        self.shift, self.calls, self.after = 0.0, 0, after
        self.options = {"shift": 0.0}
        self.register_buffer("moved", torch.zeros((), dtype=torch.float64))

    def model(self, x):
        if self.after is not None:
            self.calls += 1
        late = 5.0 if self.after is not None and self.calls > self.after else 0.0
        shift = self.shift + self.options["shift"] + self.moved + late
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.zeros(2), 1.0).to_event(1))
            pyro.sample("x", normal(self.decoder(z) + shift), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.encoder(x)))


def bias(program, engine="eager", callbacks=(), **options):
    """Where the decoder's bias ends, which makes up for the shift."""
    options = {"steps": 400, "batch_size": 20, "lr": 0.05, "optimizer": optim.Adam, **options}
    run = pv.fit(program, X, engine=engine, callbacks=callbacks, progress=False, **options)
    return (run if isinstance(run, pv.Run) else run[-1]).program.decoder.bias.detach().mean(), run


CHANGES = {
    "number": lambda program: setattr(program, "shift", 5.0),
    "entry": lambda program: program.options.update(shift=5.0),
    "buffer": lambda program: program.moved.fill_(5.0),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_callback_changes_is_trained_on(name, engine):
    def change(record):
        if record.step == 100:
            CHANGES[name](record.program)

    found, run = bias(Shifted().double(), engine, [change])
    assert run.manifest["engine"] == engine and abs(float(found) + 5.0) < 0.5
    assert abs(float(bias(Shifted().double(), engine)[0])) < 0.5


@pytest.mark.parametrize("engine", ENGINES)
def test_an_objective_that_a_callback_changes_is_what_is_trained_by(engine):
    """Annealing by hand, and by the program's own handlers, to the same parameters."""

    def trained(engine):
        objective = AEVB(kl_weight=0.5)

        def change(record):
            objective.kl_weight = 2.0

        run = pv.fit(
            Shifted().double(), X, objective, steps=60, batch_size=20, engine=engine,
            callbacks=[change], progress=False,
        )  # fmt: skip
        assert run.history.kl_weight.iloc[0] == 0.5 and run.history.kl_weight.iloc[-1] == 2.0
        return dict(run.program.named_parameters())

    torch.testing.assert_close(trained(engine), trained("pyro"), rtol=1e-9, atol=1e-10)


def test_so_it_is_of_replicas_and_only_where_all_of_them_change():
    def change(record):
        record.program.shift = 5.0

    assert abs(float(bias(Shifted().double(), callbacks=[change], replicas=2)[0]) + 5.0) < 0.5
    programs = [Shifted().double(), Shifted().double()]
    with pytest.raises(ValueError, match=r"Shifted.shift .* of some of the 2 .*record.program"):
        bias(programs, callbacks=[lambda record: setattr(programs[0], "shift", 5.0)])


def test_a_value_that_the_model_does_not_use_makes_no_graph_anew(monkeypatch):
    made = []
    capture = engine.choosing.capture
    monkeypatch.setattr(engine.choosing, "capture", lambda *args: made.append(1) or capture(*args))
    program = Shifted().double()
    bias(program, callbacks=[lambda record: setattr(program, "calls", program.calls + 1)])
    assert program.calls > 10 and len(made) == 1


def test_a_program_that_counts_its_own_calls_is_not_captured():
    found, run = bias(Shifted(after=100).double())
    assert abs(float(found) + 5.0) < 0.5
    assert "changes Shifted.calls (" in run.manifest["engine_reason"]
    with pytest.raises(ValueError, match="as it runs, which a graph would freeze"):
        bias(Shifted(after=100).double(), "compiled", steps=2)


def test_a_refused_capture_leaves_the_count_as_it_was():
    program = Shifted(after=100).double()
    assert "calls" in str(engine.capture(program, AEVB(), X[:5]))
    assert program.calls == 1  # by the look before it, which other engines take as well


def counting():
    """Two functions, and a number that the first of them keeps in its closure."""
    calls, decoder = 0, nn.Linear(2, 3).double()

    def model(x):
        nonlocal calls
        calls += 1
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(x.new_zeros(len(x), 2)))
            pyro.sample("x", normal(decoder(z) + (5.0 if calls > 100 else 0.0)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(x[:, :2]))

    return pv.Program(model, guide, decoder=decoder)


def test_a_closure_that_counts_is_found_as_well():
    assert "model: calls (" in str(engine.capture(counting(), AEVB(), X[:5]))


def test_who_freezes_parameters_meanwhile_is_told_so():
    with pytest.raises(ValueError, match="changed which parameters are trained"):
        bias(Shifted().double(), callbacks=[lambda r: r.program.encoder.requires_grad_(False)])


def test_what_is_looked_at():
    program = Shifted()
    before, tensors = remembered(program), fixed_tensors(program)
    assert before["Shifted.options"] == {"shift": 0.0} and not changed(before, remembered(program))
    program.options["shift"] = float("nan")
    assert changed(before, remembered(program)) == (
        "Shifted.options ({'shift': 0.0}, then {'shift': nan})"
    )
    assert not changed(remembered(program), remembered(program))
    program.moved.fill_(1.0)
    assert changed(tensors, fixed_tensors(program)).startswith("moved ")


class Annealed(Shifted):
    """Whose shift is what ``look`` finds, wherever that is."""

    def __init__(self, look):
        super().__init__()
        self.look = look
        self.value, self.config = torch.zeros(()), types.SimpleNamespace(shift=0.0)
        self.act = torch.tanh

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.zeros(2), 1.0).to_event(1))
            mean = self.decoder(self.act(z)) + self.look(self)
            pyro.sample("x", normal(mean), obs=x)


HIDDEN = types.SimpleNamespace(shift=0.0)
PLACES = {
    "a tensor of its own": (
        lambda p: p.value, lambda p: p.value.fill_(5.0)
    ),
    "a tensor replaced": (lambda p: p.value, lambda p: setattr(p, "value", torch.tensor(5.0))),
    "an object": (lambda p: p.config.shift, lambda p: setattr(p.config, "shift", 5.0)),
    "elsewhere": (lambda p: HIDDEN.shift, lambda p: setattr(HIDDEN, "shift", 5.0)),
    "a number of a buffer": (lambda p: p.moved.item(), lambda p: p.moved.fill_(5.0)),
    "a hook": (
        lambda p: 0.0,
        lambda p: p.decoder._forward_hooks
        or p.decoder.register_forward_hook(lambda m, i, out: out + 5.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_whatever_a_callback_touches_is_noticed(place):
    look, change = PLACES[place]
    HIDDEN.shift = 0.0
    found, _ = bias(Annealed(look).double(), callbacks=[lambda r: change(r.program)])
    assert abs(float(found) + 5.0) < 0.7


def test_who_changes_it_all_the_time_is_told_and_has_the_right_numbers():
    def trained(engine):
        program = Shifted().double()

        def anneal(record):
            program.shift = record.step / 100

        bias(program, engine, [anneal], steps=60)
        return dict(program.named_parameters())

    with pytest.warns(pv.PyroVaeWarning, match=r"changed Shifted.shift .* again and again"):
        found = trained("eager")
    torch.testing.assert_close(found, trained("pyro"), rtol=1e-6, atol=1e-7)


def test_who_replaces_a_layer_meanwhile_is_told_so():
    def replace(record):
        record.program.decoder = nn.Linear(2, 3).double()

    for name in ("eager", "pyro"):
        with pytest.raises(ValueError, match="changed which parameters are trained"):
            bias(Shifted().double(), name, [replace])


def test_a_replica_that_a_callback_cannot_reach_is_told_of_by_every_engine():
    for name in ("eager", "pyro"):
        program = Shifted().double()
        with pytest.raises(ValueError, match=r"not of number 1: change record\.program"):
            bias(program, name, [lambda r, p=program: setattr(p, "shift", 5.0)], replicas=2)


def test_a_resumed_run_reads_the_buffers_that_were_saved(tmp_path):
    def fit(steps, folder, **options):
        def change(record):
            if record.step >= 10:
                record.program.moved.fill_(5.0)

        program = Annealed(PLACES["a number of a buffer"][0]).double()
        bias(program, callbacks=[change], steps=steps, out=folder, **options)
        return dict(program.named_parameters())

    fit(15, tmp_path / "parts")
    found = fit(40, tmp_path / "parts", resume=True)
    torch.testing.assert_close(found, fit(40, tmp_path / "whole"), rtol=0, atol=0)


class Normed(Shifted):
    """A batch norm sees the rows of a batch, and must not see what fills up the last one."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def guide(self, x):
        super().guide(self.norm(x))


@pytest.mark.filterwarnings("ignore:.*again and again:pyro_vae.PyroVaeWarning")
def test_a_batch_norm_sees_no_filling_after_the_handlers_have_taken_over():
    def trained(engine):
        program = Normed().double()
        anneal = [lambda record: setattr(program, "shift", record.step / 50)]
        bias(program, engine, anneal, steps=40, batch_size=25)  # 25, 25 and 10 rows
        return dict(program.named_parameters()), dict(program.named_buffers())

    torch.testing.assert_close(trained("eager"), trained("pyro"), rtol=1e-6, atol=1e-7)


def test_what_a_callback_counts_in_one_of_several_replicas_is_no_reason_to_end():
    program = Shifted().double()
    count = [lambda record: setattr(program, "calls", program.calls + 1)]
    for name in ("eager", "pyro"):
        bias(program, name, count, replicas=2, steps=20)
    assert program.calls > 2
