"""Loading a saved run: models by name, parts of one's own, and nothing that a file chooses."""

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae, gaussian_vae, linear_gaussian, logistic_lvm
from pyro_vae.runs import run, storage

from .saved_runs import HELD_OUT, Counting, X, assert_same, fit, small_vae

BUILDS = {
    "bernoulli": lambda: bernoulli_vae.build(6, latent_dim=3, hidden_dim=4, prior_precision=2.0),
    "gaussian": lambda: gaussian_vae.build(6, latent_dim=3, hidden_dim=4, floor=0.02),
    "linear": lambda: linear_gaussian.build(6, noise="full", posterior="full"),
    "logistic": lambda: logistic_lvm.build(6, hidden_dim=5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", BUILDS)
def test_models_of_the_folder_come_back_by_name(tmp_path, name, dtype):
    """The class, the options, the precision, and every bit; no generator is touched."""
    run = fit(BUILDS[name]().to(dtype), out=tmp_path, steps=3, validation=HELD_OUT)
    before = torch.get_rng_state()
    loaded = pv.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(loaded.program) is type(run.program)
    assert_same(dict(loaded.program.named_parameters()), dict(run.program.named_parameters()))
    assert torch.equal(pv.elbo(loaded.program, HELD_OUT), pv.elbo(run.program, HELD_OUT))
    pd.testing.assert_frame_equal(loaded.history, run.history, check_exact=True)
    assert loaded.manifest == run.manifest and repr(loaded) == repr(run)


class OwnPrior(torch.nn.Module):
    def forward(self):
        return pv.priors.StandardNormal(2)()


def test_parts_of_ones_own_must_be_passed(tmp_path):
    """A checkpoint holds no classes: what it cannot name in the folder, the user gives."""
    run = fit(small_vae(prior=OwnPrior()), out=tmp_path)
    said = r"prior is .*OwnPrior.*cannot be made from its name.*pv.load\(path, program=mine\)"
    with pytest.raises(ValueError, match=said):
        pv.load(tmp_path)
    mine = small_vae(seed=9, dtype=torch.float64, prior=OwnPrior())
    loaded = pv.load(tmp_path, program=mine)
    assert loaded.program is mine
    assert_same(dict(mine.named_parameters()), dict(run.program.named_parameters()))
    with pytest.raises(ValueError, match=r"holds another program: .*network.0.weight\" has shape"):
        pv.load(tmp_path, program=small_vae(hidden_dim=9, prior=OwnPrior()))


@pytest.mark.parametrize("model", ["os", "os.path", "..training", "bernoulli_vae.build", ""])
def test_a_checkpoint_never_chooses_what_is_imported(tmp_path, monkeypatch, model):
    fit(out=tmp_path, steps=1)
    saved = storage.read(tmp_path)
    assert saved["build"]["model"] == "bernoulli_vae"
    saved["build"]["model"] = model
    storage.write(tmp_path, saved)
    load = pv.load  # which is itself imported at first sight
    monkeypatch.setattr(run.importlib, "import_module", pytest.fail)
    known = "known are bayesian_vae, bernoulli_vae, gaussian_vae, hierarchical_vae, linear"
    with pytest.raises(ValueError, match=known):
        load(tmp_path)


class Mine(pv.Program):
    """A user's program: buffers of several dtypes, parameters of two."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2, 6), 0.1))
        self.frozen = nn.Parameter(torch.arange(3), requires_grad=False)
        self.register_buffer("mask", torch.tensor([True] * 5 + [False]))
        self.register_buffer("shift", torch.full((6,), scale, dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = z @ self.weight + self.shift.to(x.dtype)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x * self.mask) @ self.weight.T, 1.0).to_event(1))


def rewritten():
    class Mine(globals()["Mine"]):  # same name and shapes, other words
        pass

    return Mine()


def test_a_users_program_brings_its_own_class_and_the_file_its_numbers(tmp_path):
    run = fit(Mine(scale=0.25), out=tmp_path)
    loaded = pv.load(tmp_path, program=Mine())
    assert_same(dict(loaded.program.named_parameters()), dict(run.program.named_parameters()))
    assert_same(dict(loaded.program.named_buffers()), dict(run.program.named_buffers()))
    assert loaded.program.shift.dtype == torch.float64 and loaded.program.mask.dtype == torch.bool
    with pytest.warns(pv.PyroVaeWarning, match="written otherwise: source_digest is"):
        pv.load(tmp_path, program=rewritten())


def test_the_source_of_a_part_counts_as_the_programs(tmp_path):
    """A likelihood of equal shapes changes the numbers, though the program's class stays."""

    class Flipped(pv.models.bernoulli_vae.likelihoods.Bernoulli):
        def forward(self, z):
            return dist.Bernoulli(logits=-self.network(z)).to_event(1)

    fit(out=tmp_path, steps=2)
    with pytest.raises(
        ValueError, match=r"likelihood.class is '.*Flipped', the checkpoint has 'Ber"
    ):
        fit(small_vae(likelihood=Flipped(2, 6, 8)), out=tmp_path, steps=4, resume=True)
    with pytest.warns(pv.PyroVaeWarning, match="source_digest"):
        pv.load(tmp_path, small_vae(likelihood=Flipped(2, 6, 8)))


def functions():
    decoder = nn.Linear(2, 6)

    def model(x):
        with pyro.plate("data", len(x["x"])):
            z = pyro.sample("z", dist.Normal(x["x"].new_zeros(2), 1.0).to_event(1))
            shift = pyro.param("shift", torch.zeros(6))
            logits = decoder(z) + shift + x["u"].unsqueeze(-1)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x["x"])

    def guide(x):
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x["x"])):
            pyro.sample("z", dist.Normal(x["x"].new_zeros(2), scale).to_event(1))

    return pv.Program(model, guide, decoder=decoder)


def test_parameters_that_pyro_creates_come_back_into_a_program_that_never_ran(tmp_path):
    x = {"x": X, "u": torch.arange(50)}
    run = fit(functions(), x, out=tmp_path)
    loaded = pv.load(tmp_path, program=functions())
    assert "created.scale" in dict(loaded.program.named_parameters())
    assert_same(dict(loaded.program.named_parameters()), dict(run.program.named_parameters()))
    assert torch.equal(pv.elbo(loaded.program, x), pv.elbo(run.program, x))


def test_a_run_can_be_saved_by_hand_and_loaded_and_not_gone_on_from(tmp_path):
    run = fit(objective=Counting(), validation=HELD_OUT)
    run.save(tmp_path / "run")
    loaded = pv.load(tmp_path / "run")
    assert_same(dict(loaded.program.named_parameters()), dict(run.program.named_parameters()))
    assert_same(loaded.state._asdict(), run.state._asdict())
    pd.testing.assert_frame_equal(loaded.history, run.history, check_exact=True)
    with pytest.raises(ValueError, match=r"written by Run.save, without the optimizer: use pv.lo"):
        fit(objective=Counting(), validation=HELD_OUT, out=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("build", "option", "part"),
    [
        (bernoulli_vae.build, {"soft_targets": True}, "likelihood"),
        (bernoulli_vae.build, {"prior_precision": 2.0}, "prior"),
        (gaussian_vae.build, {"floor": 0.1}, "likelihood"),
        (gaussian_vae.build, {"sigmoid_mean": False}, "likelihood"),
        (gaussian_vae.build, {"posterior_precision": 3.0}, "posterior"),
    ],
)
def test_an_option_of_a_part_that_is_replaced_is_refused(build, option, part):
    """It would be dropped without a word; the default, which a saved run repeats, is no option."""
    mine = {
        "prior": pv.priors.StandardNormal(2),
        "likelihood": pv.likelihoods.Bernoulli(2, 6, 4),
        "posterior": pv.posteriors.Gaussian(6, 2, 4),
    }[part]
    with pytest.raises(ValueError, match=rf"{next(iter(option))} is .* beside {part}=, .*left out"):
        build(6, latent_dim=2, hidden_dim=4, **{part: mine}, **option)
    assert getattr(build(6, latent_dim=2, hidden_dim=4, **{part: mine}), part) is mine
