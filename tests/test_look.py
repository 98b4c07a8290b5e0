"""One look at a program serves every guard, and leaves no mark on the program or on torch."""

import ast
import copy
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import pyro_vae as pv
from pyro_vae.chains.latents import Latents
from pyro_vae.checking.guards import require_possible_data
from pyro_vae.densities import densities, traces
from pyro_vae.densities.look import Look
from pyro_vae.models import bernoulli_vae
from pyro_vae.objectives.base import Pair
from pyro_vae.program import materialize
from pyro_vae.training import fitting

from .quickly import some_quickly


class Drift(nn.Module):
    """Keeps a running mean by assigning a new tensor, and counts its calls in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        self.calls += 1
        return x


class Normal(pv.Program):
    """A Gaussian program with a module of any kind in front of its guide, or behind its model."""

    rows = "data"

    def __init__(self, inner=None, outer=None):
        super().__init__()
        self.inner, self.outer = inner or nn.Identity(), outer or nn.Identity()
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(2, 3)

    def model(self, x):
        with pyro.plate(self.rows, len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.outer(self.decoder(z)), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate(self.rows, len(x)):
            pyro.sample("z", dist.Normal(self.encoder(self.inner(x)), 1.0).to_event(1))


PROGRAMS = {
    "plain": lambda: Normal(),
    "batch norm in the guide": lambda: Normal(nn.BatchNorm1d(3)),
    "batch norm in the model": lambda: Normal(outer=nn.BatchNorm1d(3)),
    "spectral norm": lambda: Normal(spectral_norm(nn.Linear(3, 3)), spectral_norm(nn.Linear(3, 3))),
    "dropout": lambda: Normal(nn.Dropout(), nn.Dropout()),
    "a buffer assigned anew": lambda: Normal(Drift(), Drift()),
}
LOOKS = {
    "look": lambda program, x: Look.at(program, x),
    "look at all rows": lambda program, x: Look.at(program, x, rows=None, key=(1, 2)),
    "materialize": materialize,
    "autoencoder": lambda program, x: pv.objectives.Autoencoder().init(program, x),
}


@pytest.mark.parametrize("how", LOOKS)
@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_look_leaves_no_mark(kind, how):
    """Not on generators, modes, gradients, parameters or buffers, which move in training mode."""
    program, x = PROGRAMS[kind](), torch.randn(7, 3) + 5
    for parameter in program.parameters():
        parameter.grad = torch.ones_like(parameter)
    tensors = {**dict(program.named_parameters()), **dict(program.named_buffers())}
    before = copy.deepcopy(program.state_dict())
    generator, grad = torch.get_rng_state(), torch.is_grad_enabled()
    validates = torch.distributions.Distribution._validate_args

    LOOKS[how](program, x)

    after = {**dict(program.named_parameters()), **dict(program.named_buffers())}
    assert all(after[name] is tensor for name, tensor in tensors.items())
    assert after.keys() == tensors.keys()
    for name, value in program.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.is_grad_enabled() == grad and program.training
    assert validates == torch.distributions.Distribution._validate_args
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in program.parameters())


@pytest.mark.parametrize("kind", ["batch norm in the guide", "a buffer assigned anew"])
def test_a_gradient_report_leaves_no_mark(kind):
    program, x = PROGRAMS[kind](), torch.randn(7, 3) + 5
    before, generator = copy.deepcopy(program.state_dict()), torch.get_rng_state()

    pv.gradient_report(program, x, [pv.objectives.AEVB()], num_draws=50, progress=False)

    assert all(torch.equal(v, before[n]) for n, v in program.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("kind", ["plain", "batch norm in the guide", "spectral norm", "dropout"])
def test_latents_are_learnt_without_a_mark(kind):
    """HMC sees the model alone, so what stands in the guide may tie rows together."""
    program, x = PROGRAMS[kind](), torch.randn(7, 3)
    program.outer = nn.Identity() if kind == "dropout" else program.outer
    before, generator = copy.deepcopy(program.state_dict()), torch.get_rng_state()

    assert Latents.of(program, x).dim == 2

    assert all(torch.equal(v, before[n]) for n, v in program.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_look_is_the_same_wherever_the_generators_stand():
    program, x = Normal(nn.Dropout()), torch.randn(7, 3)

    first = Look.at(program, x)
    torch.rand(3)
    again = Look.at(program, x)
    other = Look.at(program, x, key=(5,))

    assert torch.equal(first.guide["z"].value, again.guide["z"].value)
    assert not torch.equal(first.guide["z"].value, other.guide["z"].value)
    assert torch.equal(Look.at(program, x, rows=2).x, x[:2])
    assert torch.equal(first.x, x) and not first.guide["z"].value.requires_grad


def test_fit_runs_a_program_thrice_before_anything_is_captured(monkeypatch):
    """Once to make parameters of ``pyro.param``, once for the look that held-out data share, once
    with gradients, which show parameters of no program."""
    program, x, runs = Normal(), torch.randn(7, 3), []
    monkeypatch.setattr(program.encoder, "forward", lambda x: runs.append(len(x)) or x[:, :2])

    class Enough(Exception):
        pass

    def stop(*args, **options):
        raise Enough

    monkeypatch.setattr(fitting, "make_step", stop)
    with pytest.raises(Enough):
        pv.fit(program, x, steps=1, validation=torch.randn(5, 3), progress=False)

    assert len(runs) == 3


# --- what a site is -------------------------------------------------------------------------------


def test_a_site_scores_events_and_rows_masked_and_unscaled():
    """(3 labels, 4 rows) of a Normal of two numbers: events are summed by row, without the mask."""
    x, known = torch.randn(3, 4, 2), torch.rand(3, 4) < 0.6

    def model(_):
        labels = pyro.plate("labels", 3, dim=-2)
        rows = pyro.plate("data", 40, subsample_size=4, dim=-1)
        with labels, rows, pyro.poutine.mask(mask=known):
            pyro.sample("x", dist.Normal(0.0, 2.0).expand([2]).to_event(1), obs=x)
        pyro.deterministic("twice", 2 * x.sum())
        pyro.factor("penalty", torch.tensor(-3.0))

    def guide(x):
        """No latents."""

    sites = traces.sites_of(Pair(model, guide), "model", x[0])
    events = torch.distributions.Normal(0.0, 2.0).log_prob(x).sum(-1) * known

    torch.testing.assert_close(sites["x"].density(), events)
    torch.testing.assert_close(sites["x"].per_datum(), events.sum(0))
    assert sites["x"].axis == -1 and sites["x"].scale == 10.0
    assert (sites["x"].plate.size, sites["x"].plate.total) == (4, 40)
    assert {plate.name for plate in sites["x"].plates} == {"labels", "data"}
    assert sites["twice"].is_deterministic and sites["penalty"].is_factor
    assert sites["penalty"].is_global and sites["penalty"].per_datum() == -3.0


@pytest.mark.filterwarnings("ignore::pyro_vae.errors.PyroVaeWarning")  # of chains this short
@pytest.mark.parametrize("name", some_quickly(["rows", "data"], "rows"))
def test_one_place_says_which_plate_counts_the_data(name):
    """A plate of another name is found, and every verb takes programs with it."""
    program, x = Normal(), torch.randn(9, 3)
    program.rows = name

    assert pv.check(program, x).sites[0].kind == "latent"
    pv.fit(program, x, steps=2, progress=False)
    bound = pv.elbo(program, x, num_particles=100)
    exact = [
        pv.log_evidence(program, x, num_particles=200, proposal=proposal).value
        for proposal in ("guide", "hmc")
    ]
    torch.testing.assert_close(exact[0], exact[1], atol=0.3, rtol=0.05)
    assert (bound.double() < exact[1] + 0.1).all()
    assert pv.encode(program, x).shape == (9, 2) and pv.reconstruct(program, x).shape == (9, 3)
    assert pv.sample(program, 4, like=x).shape == (4, 3)
    pv.fit(program, x, pv.objectives.WakeSleep(), steps=2, progress=False)


PYRO_S_OWN = {"cond_indep_stack", "is_observed", "_deterministic", "was_observed", "is_auxiliary"}


def test_nobody_else_reads_what_pyro_wrote_down():
    """(As strings by themselves; attributes of a ``Site`` may have such names.)"""
    root = Path(pv.__file__).parent
    readers = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in PYRO_S_OWN:
                readers.add(str(path.relative_to(root)))
    assert {each for each in readers if not each.startswith("densities/")} == {
        "program/automatic.py",  # which is above, and asks Pyro's own guides for their plates
        "refinement/laws.py",  # and these put another law in place of one, while a program runs
        "diagnostics/rate_distortion.py",
    }


class Looped(Normal):
    def model(self, x):
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z{i}", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample(f"x{i}", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x[i])

    def guide(self, x):
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z{i}", dist.Normal(self.encoder(x[i]), 1.0).to_event(1))


@pytest.mark.parametrize("verb", [densities, pv.elbo, Latents.of])
def test_rows_in_a_loop_are_refused_by_name(verb):
    with pytest.raises(ValueError, match=r'"z0" is (in a `for` loop|not in a vectorized)'):
        verb(Looped(), torch.randn(4, 3))


class Given(Normal):
    """Its guide gives z a value where it should draw one."""

    how = "obs"

    def guide(self, x):
        with pyro.plate("data", len(x)):
            value = self.encoder(x)
            if self.how == "obs":
                pyro.sample("z", dist.Normal(value, 1.0).to_event(1), obs=value)
            else:
                pyro.deterministic("z", value, event_dim=1)


@pytest.mark.parametrize("how", ["obs", "deterministic"])
def test_a_latent_that_the_guide_is_given_is_not_drawn_from_the_prior(how):
    program = Given()
    program.how = how
    for verb in (densities, pv.elbo):
        with pytest.raises(ValueError, match="is given a value in the guide"):
            verb(program, torch.randn(4, 3))


# --- data with bounds of their own ----------------------------------------------------------------


class Trials(pv.Program):
    """x successes of as many trials as the row has."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(1, 1), nn.Linear(1, 1)

    def model(self, x):
        with pyro.plate("data", len(x["x"])):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            law = dist.Binomial(x["trials"], logits=self.decoder(z)[:, 0])
            pyro.sample("x", law, obs=x["x"])

    def guide(self, x):
        with pyro.plate("data", len(x["x"])):
            pyro.sample("z", dist.Normal(self.encoder(x["x"][:, None]), 1.0).to_event(1))


def test_bounds_of_the_looks_rows_say_nothing_about_other_rows():
    """As many rows with more trials each are possible data, whichever number the look saw."""
    few = {"x": torch.tensor([1.0, 2.0]), "trials": torch.tensor([3.0, 3.0])}
    many = {"x": torch.tensor([7.0, 8.0]), "trials": torch.tensor([9.0, 9.0])}
    look = Look.at(Trials(), few)

    require_possible_data(look, few)
    require_possible_data(look, many)
    with pytest.raises(ValueError, match="data: values from 1 to 4"):
        wrong = {**few, "x": torch.tensor([1.0, 4.0])}
        require_possible_data(Look.at(Trials(), wrong), wrong)


def test_bounds_that_all_rows_share_hold_for_every_row():
    x = torch.tensor([[0.0, 1.0, 1.0]] * 5)
    program = bernoulli_vae.build(3, latent_dim=1, hidden_dim=2)
    look = Look.at(program, x)

    require_possible_data(look, x)
    with pytest.raises(ValueError, match="data: values from 0 to 255"):
        require_possible_data(look, torch.cat([x, 255 * x]))


# --- comparisons ----------------------------------------------------------------------------------


class Positive(Normal):
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.LogNormal(self.decoder(z), 1.0).to_event(1), obs=x)


class Blind(Normal):
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.factor("x", -(self.decoder(z) - x).square().sum(-1))


@pytest.mark.parametrize(
    ("other", "says"),
    [(Positive, "Normal.*LogNormal"), (Blind, r'builds\["b"\] has no site that observes')],
)
def test_a_likelihood_is_what_the_look_sees_of_it(other, says):
    """A log-normal law is no normal one, though torch makes it of one."""
    data = pv.datasets.split(pv.datasets.from_array(np.full((40, 3), 0.5, dtype="float32")))
    with pytest.raises(ValueError, match=says):
        pv.compare(
            data,
            builds={"a": Normal, "b": other},
            objectives=[pv.objectives.AEVB()],
            samples=10,
            proposal="guide",
        )


@pytest.mark.parametrize("engine", ["auto", "pyro"])
def test_running_statistics_see_the_steps_and_nothing_else(engine):
    """A capture runs the program some times, and leaves no mark of that."""

    class Normalized(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.mean = nn.BatchNorm1d(6), nn.Linear(6, 2)

        def forward(self, x):
            return pyro.distributions.Normal(self.mean(self.norm(x)), 1.0).to_event(1)

    program = bernoulli_vae.build(6, latent_dim=2, hidden_dim=4, posterior=Normalized())
    pv.fit(program, (torch.rand(20, 6) < 0.5).float(), steps=5, batch_size=10, engine=engine)
    assert int(program.posterior.norm.num_batches_tracked) == 5
