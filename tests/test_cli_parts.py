"""Priors, likelihoods and posteriors that are named on the command line."""

from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae import likelihoods, priors
from pyro_vae.cli import main
from pyro_vae.models import bernoulli_vae
from pyro_vae.noise import Stream, seeded

from .quickly import some_quickly

FIT = ["fit", "bernoulli_vae", "--model.latent_dim", "2", "--model.hidden_dim", "4", "--steps", "2"]
MINE = """
import torch, pyro.distributions as dist
from torch import nn
from pyro_vae.program.parts import Likelihood, Prior

class Wide(Prior):
    def __init__(self, latent_dim, scale: float = 3.0, odd=None, also=None):
        super().__init__()
        assert also is None or type(also) is float
        self.scale = scale
        self.register_buffer("zero", torch.zeros(latent_dim))
    def forward(self):
        return dist.Normal(self.zero, self.scale).to_event(1)

class Broken(nn.Module):
    def __init__(self, latent_dim: int):
        raise KeyError("my own")

class Other(Likelihood):
    pass
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


def test_named_parts_are_those_of_the_library(tmp_path, capsys):
    """Sizes are the model's where none are given, and the same draws make the same parameters."""
    out = tmp_path / "run"
    flags = ["--model.likelihood", "Bernoulli", "--model.likelihood.hidden-dim", "7",
             "--model.prior=StandardNormal", "--model.prior.precision", "4",
             "--seed", "5"]  # fmt: skip
    assert main([*FIT, *flags, "--out", str(out)]) == 0, capsys.readouterr().err
    digits = pv.datasets.load("digits")
    with seeded(*Stream.PARAMETERS.key(5)):
        prior = priors.StandardNormal(2, 4.0)
        likelihood = likelihoods.Bernoulli(2, digits.dim, 7)
        vae = bernoulli_vae.build(
            digits.dim, latent_dim=2, hidden_dim=4, prior=prior, likelihood=likelihood
        )
    pv.fit(vae, digits.train, steps=2, seed=5, validation=digits.validation, progress=False)
    saved = dict(pv.load(out).program.named_parameters())  # by the names of its parts
    assert saved.keys() == dict(vae.named_parameters()).keys()
    for name, value in vae.named_parameters():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=0)
    capsys.readouterr()
    assert main(["evidence", str(out), "--num_data", "3", "--num_particles", "30"]) == 0
    assert "log p(x)" in capsys.readouterr().out


def test_a_config_file_names_parts_nested_or_dotted(tmp_path, capsys):
    nested = "{name: bernoulli_vae, latent_dim: 2, hidden_dim: 4, prior: {name: StandardNormal, "
    ends = {
        "nested": f"model: {nested}precision: 4}}}}\n",
        "dotted": "model: bernoulli_vae\nmodel.latent-dim: 2\nmodel.hidden_dim: 4\n"
        "model.prior: StandardNormal\nmodel.prior.precision: 4\n",
    }
    said = []
    for name, text in ends.items():
        (tmp_path / f"{name}.yaml").write_text(f"{text}steps: 2\n")
        assert main(["fit", "--config", str(tmp_path / f"{name}.yaml")]) == 0
        said.append(capsys.readouterr().out.split("test bound")[1])
    assert main([*FIT, "--model.prior", "StandardNormal", "--model.prior.precision", "4"]) == 0
    said.append(capsys.readouterr().out.split("test bound")[1])
    assert len(set(said)) == 1
    assert main([*FIT, "--model.prior", "StandardNormal"]) == 0
    assert capsys.readouterr().out.split("test bound")[1] != said[0]


def test_help_shows_the_options_of_a_named_part(capsys):
    named = ["--model.prior", "StandardNormal", "--model.likelihood", "Bernoulli"]
    assert main(["fit", "bernoulli_vae", *named, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--model.prior.precision" in said and "the model's, where it is not given" in said
    assert "--model.prior.latent_dim" not in said and "--model.likelihood.network NETWORK" in said
    assert "--model.posterior.precision" not in said
    assert "Bernoulli" in said  # what might be named elsewhere


def test_a_class_of_a_users_file_is_named_by_its_path(mine, capsys):
    """What is written without a type is a value as YAML reads it."""
    flags = ["--model.prior", "mine.py:Wide", "--model.prior.scale", "2", "--model.prior.also"]
    assert main([*FIT, *flags, "1.5", "--out", "run"]) == 0, capsys.readouterr().err
    few = ["--num_data", "3", "--num_particles", "30"]
    assert main(["evidence", "run", *few]) == 2
    assert "--program" in capsys.readouterr().err
    sizes = [*FIT[2:6], *flags, "1.5"]
    assert main(["evidence", "run", *few, "--program", "bernoulli_vae", *sizes]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.prior", "StandarNormal"], 'unknown "StandarNormal", did you mean "StandardN'),
        (["--model.prior", "StandardNormal", "--model.prior.precison", "2"],
         'did you mean "--model.prior.precision"?'),
        (["--model.prior", "StandardNormal", "--model.prior.precision", "two"],
         "--model.prior.precision is 'two', expected a finite number"),
        (["--model.prior", "StandardNormal", "--model.prior.precision", "-1"],
         "--model.prior StandardNormal: precision is -1"),
        (["--model.prior", "StandardNormal", "--model.prior.latent_dim", "3"],
         'did you mean "--model.latent_dim"?'),
        (["--model.likelihood", "Bernoulli", "--model.likelihood.data_dim", "3"],
         'unknown "--model.likelihood.data_dim"'),
        (["--model.prior", "StandardNormal", "--model.prior_precision", "3"], "replaces"),
        (["--model.prior.precision", "3"], "name it, --model.prior NAME"),
        (["--model.prior"], "--model.prior needs a value"),
        (["--model.prior", "mine.py:Wid"], 'did you mean "Wide"?'),
        (["--model.prior", "mine.py:Other"], "is a Likelihood, expected a prior"),
        (["--model.prior", "mine.py:Broken"], "KeyError: 'my own'"),
        (["--model.prior", "none.py:Wide"], "no such file"),
        (["--model.latent_dim", "1e20"], "bernoulli_vae: "),
    ],
)  # fmt: skip
def test_a_mistake_about_a_part_is_one_line(arguments, said, mine, capsys):
    assert main([*FIT, *arguments, "--out", "run"]) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1
    assert not (mine.parent / "run").exists()


def test_an_option_of_build_without_a_type_is_a_flag(mine, capsys):
    text = "from pyro_vae.models import bernoulli_vae\ndef build(data_dim, width, depth=None):\n"
    text += "    assert (type(width), depth) == (int, 'a b')\n"
    mine.write_text(text + "    return bernoulli_vae.build(data_dim, hidden_dim=width)\n")
    assert main(["check", "mine.py"]) == 2
    assert "--model.width is needed" in capsys.readouterr().err
    assert main(["check", "mine.py", "--model.width", "4", "--model.depth", "a b"]) == 0


# --- networks, lists, data that parts look at ----------------------------------------------------


VAE = ["fit", "vae", "--model.latent_dim", "2", "--steps", "2", "--engine", "eager"]
NAMED = [
    "--model.prior", "Laplace", "--model.prior.scale", "2", "--model.likelihood", "Bernoulli",
    "--model.posterior", "FullNormal", "--model.network", "MLP", "--model.network.hidden", "6,5",
    "--model.network.gated", "--objective.estimator", "A",
]  # fmt: skip
YAML = """
model:
  name: vae
  latent_dim: 2
  prior: {name: Laplace, scale: 2}
  likelihood: Bernoulli
  posterior: {name: FullNormal}
  network: {name: MLP, hidden: [6, 5], gated: true}
steps: 2
engine: eager
objective: {estimator: A}
"""


def same_parameters(mine, theirs):
    pairs = dict(mine.named_parameters()), dict(theirs.named_parameters())
    assert pairs[0].keys() == pairs[1].keys()
    for name, value in pairs[0].items():
        torch.testing.assert_close(value, pairs[1][name], rtol=0, atol=0)


def test_all_parts_are_named_by_flags_in_yaml_and_in_python_alike(tmp_path, capsys):
    """And what is saved is loaded by names alone."""
    assert main([*VAE, *NAMED, "--out", str(tmp_path / "flags")]) == 0, capsys.readouterr().err
    (tmp_path / "run.yaml").write_text(YAML)
    config = ["fit", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "yaml")]
    assert main(config) == 0, capsys.readouterr().err
    digits = pv.datasets.load("digits")
    with seeded(*Stream.PARAMETERS.key(0)):
        vae = pv.VAE.build(
            digits,
            latent_dim=2,
            prior=priors.Laplace(scale=2.0),
            likelihood=likelihoods.Bernoulli(),
            posterior=pv.posteriors.FullNormal(),
            network=pv.networks.MLP(hidden=(6, 5), gated=True),
        )
    options = {"validation": digits.validation, "engine": "eager", "progress": False}
    pv.fit(vae, digits.train, pv.objectives.AEVB("A"), steps=2, **options)
    for name in ("flags", "yaml"):
        saved = pv.load(tmp_path / name).program
        same_parameters(saved, vae)
        assert repr(saved) == repr(vae)
    again = [*VAE, *NAMED, "--out", str(tmp_path / "flags"), "--resume", "--steps", "4"]
    assert main(again) == 0, capsys.readouterr().err
    assert main([*again[:-1], "6", "--model.network.hidden", "6,6"]) == 2
    assert "hidden" in capsys.readouterr().err


@pytest.mark.parametrize(
    "model", some_quickly(["vae", "bernoulli_vae", "gaussian_vae"], "vae", "bernoulli_vae")
)
def test_a_vamp_prior_has_the_models_posterior_and_is_loaded_by_name(model, tmp_path, capsys):
    """Only ``vae`` is given the data themselves, so that pseudo-inputs start as rows of them."""
    out = tmp_path / "run"
    command = ["fit", model, "--model.hidden_dim", "4", "--model.prior", "VampPrior", "--steps",
               "1", "--model.prior.num_components", "5", "--engine", "eager", "--lr", "1e-9",
               "--out", str(out)]  # fmt: skip
    assert main(command) == 0, capsys.readouterr().err
    program = pv.load(out).program
    assert program.prior.posterior is program.posterior
    inputs = program.prior.pseudo_inputs
    assert inputs.shape == (5, 64)
    rows = pv.datasets.load("digits").train.rows()
    near = torch.cdist(inputs, rows).amin(1).lt(1e-3)
    assert bool(near.all()) == (model == "vae")
    capsys.readouterr()
    few = ["--num_data", "3", "--num_particles", "30"]
    assert main(["evidence", str(out), *few]) == 0, capsys.readouterr().err
    assert main(["check", *command[1:6], "--model.latent_dim", "2"]) == 0


def test_a_part_has_a_network_of_its_own(tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--model.hidden_dim", "3", "--model.likelihood", "Bernoulli",
             "--model.likelihood.network", "MLP", "--model.likelihood.network.hidden", "[7]",
             "--model.likelihood.network.activation", "relu"]  # fmt: skip
    assert main(["fit", "bernoulli_vae", *flags, *VAE[2:], "--out", str(out)]) == 0
    program = pv.load(out).program
    assert program.likelihood.network[0].out_features == 7
    assert isinstance(program.likelihood.network[1], torch.nn.ReLU)
    assert program.posterior.network[0].out_features == 3


def test_likelihoods_of_uncertain_weights_are_named_too(capsys):
    sizes = ["--model.num_data", "100", "--model.latent_dim", "2", "--model.hidden_dim", "3"]
    parts = ["--model.likelihood", "Bernoulli", "--model.prior", "Laplace"]
    assert main(["check", "bayesian_vae", *sizes, *parts]) == 0, capsys.readouterr().err


def test_encoder_and_decoder_are_told_apart(capsys):
    both = ["--model.encoder", "MLP", "--model.encoder.hidden", "1e1", "--model.decoder", "MLP"]
    assert main([*VAE, *both, "--model.decoder.hidden", "3"]) == 0, capsys.readouterr().err
    assert main([*VAE, *both, "--model.decoder.hidden", "0"]) == 2
    assert "--model.decoder MLP: hidden is 0" in capsys.readouterr().err
    assert main([*VAE, *both, "--model.encoder.hidden", "3,0"]) == 2
    assert "--model.encoder MLP: hidden[1] is 0" in capsys.readouterr().err


def test_a_build_of_ones_own_has_finished_parts_or_the_data(mine, capsys):
    """One of data_dim has parts of its own sizes; one of data has the data, and recipes."""
    text = """
import pyro_vae as pv
from pyro_vae import likelihoods, posteriors
def build(data_dim, *, latent_dim=3, prior=None, posterior=None):
    assert prior.pseudo_inputs.shape == (4, data_dim) and prior.posterior is posterior
    likelihood = likelihoods.Bernoulli(latent_dim, data_dim, 5)
    return pv.VAE(prior=prior, likelihood=likelihood, posterior=posterior)
def from_data(data, *, prior=None):
    assert prior.unsized and len(data.train) > 1000
    return pv.VAE.build(data, latent_dim=3, hidden_dim=5, prior=prior)
"""
    mine.write_text(text)
    vamp = ["--model.prior", "VampPrior", "--model.prior.num_components", "4"]
    assert main(["check", "mine.py", *vamp, "--model.posterior", "Gaussian"]) == 0
    assert main(["check", "mine.py:from_data", *vamp]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.prior", "Normal", "--model.prior.precision", "-1"],
         "--model.prior Normal: precision is -1"),
        (["--model.posterior", "Gaussian", "--model.posterior.precision", "-1"],
         "--model.posterior Gaussian: precision is -1"),
        (["--model.prior", "VampPrior", "--model.prior.bounds", "0.5,1"],
         "--model.prior VampPrior: x is from 0 to 1"),
        (["--model.prior", "VampPrior", "--model.prior.bounds", "0"],
         "--model.prior.bounds is '0', expected 2 finite numbers with commas between or null"),
        (["--model.network", "MLP", "--model.network.hidden", "3.5,2"],
         "expected a whole number or whole numbers with commas between"),
        (["--model.network", "MLP", "--model.hidden_dim", "3"], "give --model.network.OPTION"),
        (["--model.network", "Convolutional"], "--model.network Convolutional: "),
        (["--model.network", "MPL"], 'unknown "MPL", did you mean "MLP"?'),
        (["--model.network", "MLP", "--model.network.inputs", "3"], 'unknown "--model.network.in'),
        (["--model.prior", "VampPrior", "--model.prior.posterior", "Gaussian"], "unknown"),
        (["--model.likelihood.network", "MLP"], "name it, --model.likelihood NAME"),
        (["--model.likelihood", "Bernoulli", "--model.likelihood.given_dim", "3"], "unknown"),
        (["--model.likelihood", "Columns"], "--model.likelihood Columns: needs groups"),
        (["--model.prior", "Laplace", "--model.prior", "Normal"], "given 2 times, expected once"),
        (["--binarize", "none"], "no likelihood is named: pass --model.likelihood, such as"),
        (["--model.network", "mine.py:Wide"], "is a Prior, expected a network"),
    ],
)  # fmt: skip
def test_a_mistake_about_a_recipe_is_one_line_that_names_the_flag(arguments, said, mine, capsys):
    assert main([*VAE, *arguments, "--out", "run"]) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1
    assert not (mine.parent / "run").exists()


def test_a_table_with_gaps_trains_and_is_scored(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = "\n".join(f"{i % 3},{'nan' if i % 4 == 0 else i % 5},{i % 2}" for i in range(60))
    Path("table.csv").write_text(f"a,b,c\n{rows}\n")
    flags = ["--data", "table.csv", "--model.likelihood", "Gaussian", "--model.missing"]
    flags += ["--model.likelihood.sigmoid_mean", "false", "--model.latent_dim", "1"]
    fit = ["fit", "vae", *flags, "--steps", "2", "--engine", "eager", "--out", "run"]
    assert main(fit) == 0, capsys.readouterr().err
    assert main(["evidence", "run", "--data", "table.csv", "--num_particles", "50"]) == 0
    flags.remove("--model.missing")
    assert main(["fit", "vae", *flags, "--steps", "2"]) == 2
    assert "give --model.missing where NaN means" in capsys.readouterr().err
