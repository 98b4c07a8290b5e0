"""Python values that change while a program is trained: no graph keeps what they were before."""

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
    with pytest.raises(ValueError, match=r"program\[1\] has loss"):
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
