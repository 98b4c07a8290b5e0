"""Priors, likelihoods and posteriors that are named on the command line."""

import pytest
import torch

import pyro_vae as pv
from pyro_vae import likelihoods, priors
from pyro_vae.cli import main
from pyro_vae.models import bernoulli_vae
from pyro_vae.noise import Stream, seeded

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
