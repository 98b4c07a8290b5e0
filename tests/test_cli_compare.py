"""``pyro-vae compare`` of parts, and ``pyro-vae parts``."""

import inspect
import re
import types

import numpy as np
import pandas as pd
import pytest

from pyro_vae import comparison
from pyro_vae.cli import main
from pyro_vae.cli.alternatives import alternatives
from pyro_vae.recording.listing import PARTS, classes_in

VAMP = ["--model.prior", "VampPrior", "--model.prior.num_components", "3"]


@pytest.fixture
def bits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("bits.npy", np.random.default_rng(0).integers(0, 2, (60, 9)))
    return ["--data", "bits.npy", "--binarize", "threshold", "--hidden_dim", "4"]


@pytest.fixture
def asked(monkeypatch):
    """What ``compare`` of the library is called with, in place of calling it."""
    found = types.SimpleNamespace()

    def compare(data, **options):
        vars(found).update(options, programs={n: b() for n, b in options["builds"].items()})
        raise ValueError("enough")

    monkeypatch.setattr(comparison, "compare", compare)
    return found


def test_two_priors_are_compared_under_one_objective(bits, capsys):
    budget = ["--samples", "600", "--seeds", "1", "--objectives", "AEVB", "--proposal", "guide"]
    command = ["compare", *bits, *budget, "--model.prior", "Normal", *VAMP]
    assert main(command) == 0, capsys.readouterr().err
    table = pd.read_csv("comparison/table.csv")
    assert list(table.model) == ["Normal", "VampPrior(num_components=3)"]
    assert "VampPrior(num_components=3)" in capsys.readouterr().out


def test_options_reach_the_part_that_was_named_last_before_them(bits, asked):
    laplace = ["--model.prior", "Laplace", "--model.prior.scale"]
    networks = ["--model.network", "MLP", "--model.network.hidden", "5,4",
                "--model.network", "MLP", "--model.network.gated"]  # fmt: skip
    bits = bits[:4]  # a network has no other hidden_dim
    assert main(["compare", *bits, *laplace, "2", *laplace, "3", *VAMP, *networks]) == 2
    assert list(asked.programs) == [
        f"{prior}, {network}"
        for prior in ("Laplace(scale=2.0)", "Laplace(scale=3.0)", "VampPrior(num_components=3)")
        for network in ("MLP(hidden=(5, 4))", "MLP(gated=True)")
    ]
    scales = [getattr(p.prior, "scale", None) for p in asked.programs.values()]
    assert scales == [2.0, 2.0, 3.0, 3.0, None, None]
    last = list(asked.programs.values())[-1]
    assert last.prior.pseudo_inputs.shape == (3, 9) and last.prior.posterior is last.posterior


def test_a_config_file_lists_parts_and_the_command_line_replaces_them(bits, asked, capsys):
    text = "model: {latent_dim: 3, prior: [Normal, {name: Laplace, scale: 2}], posterior: Laplace}"
    with open("run.yaml", "w") as file:
        file.write(text)
    assert main(["compare", "--config", "run.yaml", *bits]) == 2
    assert list(asked.programs) == ["Normal", "Laplace(scale=2.0)"]
    assert {type(p.posterior).__name__ for p in asked.programs.values()} == {"Laplace"}
    assert asked.programs["Normal"].prior().event_shape == (3,)
    assert main(["compare", "--config", "run.yaml", *bits, *VAMP]) == 2
    assert list(asked.programs) == ["vae"]  # one of each: no two differ
    capsys.readouterr()
    assert main(["fit", "vae", "--config", "run.yaml", "--steps", "1"]) == 2
    assert "--model.prior is given 2 times" in capsys.readouterr().err


def test_without_parts_the_nets_are_those_of_the_files(bits, asked):
    assert main(["compare", *bits]) == 2
    assert list(asked.programs) == ["bernoulli"]
    assert type(asked.programs["bernoulli"]).__name__ == "BernoulliVAE"
    assert main(["compare", *bits, "--model", "bernoulli_vae", *VAMP]) == 2
    assert list(asked.programs) == ["bernoulli_vae"]
    assert asked.programs["bernoulli_vae"].prior.pseudo_inputs.shape == (3, 9)


def test_grey_data_have_the_usual_gaussian_where_no_likelihood_is_named(bits, asked):
    np.save("grey.npy", np.random.default_rng(0).normal(size=(60, 9)))
    assert main(["compare", "--data", "grey.npy", "--model.prior", "Laplace"]) == 2
    likelihood = asked.programs["vae"].likelihood
    assert type(likelihood).__name__ == "Gaussian" and not likelihood.sigmoid_mean


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.prior.scale", "2", "--model.prior", "Laplace"], "stands before the prior"),
        (["--model.prior", "Laplace", "--model.prior", "Laplace"], "Laplace is named twice"),
        (["--model.prior", "Normal", "--model.prior", "Laplce"], 'did you mean "Laplace"?'),
        (["--model.prior", "Normal", "--model.prior.scale", "2", "--model.prior", "Laplace"],
         'unknown "--model.prior.scale"'),
        (["--model.prior", "Laplace", "--model.prior.scale", "-2", "--model.prior", "Normal"],
         "--model.prior Laplace: scale is -2"),
        (["--model.likelihood", "Bernoulli", "--model.likelihood", "Gaussian"],
         "different likelihoods"),
        (["--model", "bernouli_vae"], 'did you mean "bernoulli_vae"?'),
        (["--model.hidden_dim", "3"], "--hidden_dim and --model.hidden_dim say the same"),
        (["--model.network", "MLP"], "replaces"),
    ],
)  # fmt: skip
def test_a_mistake_about_parts_to_compare_is_one_line(arguments, said, bits, capsys):
    assert main(["compare", *bits, *arguments]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if " rows of " not in line]
    assert len(told) == 1 and said in told[0]


def test_nested_options_go_with_their_part():
    pairs = [("seed", "1"), ("model.likelihood.name", "A"), ("model.likelihood.network", "MLP"),
             ("model.likelihood.network.hidden", "3"), ("model.likelihood", "B")]  # fmt: skip
    assert alternatives(pairs) == [[pairs[0], *pairs[1:4]], [pairs[0], pairs[4]]]


# --- pyro-vae parts -------------------------------------------------------------------------------


def test_all_parts_are_listed_with_a_line_each(capsys):
    """A new class is in the list by existing; what it is for is its docstring's first line."""
    assert main(["parts"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for folder in PARTS:
        for name, cls in classes_in(folder).items():
            first = inspect.getdoc(cls).splitlines()[0]
            first = re.sub(r":class:`(\w+)`|``", r"\1", first)
            mine = [line for line in lines if line.split()[:1] == [name] and line.endswith(first)]
            assert len(mine) == (name == cls.__name__), name  # aliases are not listed
    assert not any("?" in line[:45] for line in lines)  # each says where it lives


def test_one_folder_and_one_part_are_shown(capsys):
    assert main(["parts", "posteriors"]) == 0
    said = capsys.readouterr().out
    assert "FullNormal  " in said and "VampPrior" not in said
    assert main(["parts", "VampPrior"]) == 0
    said = capsys.readouterr().out
    assert "--model.prior.num_components  a whole number (default 500)" in said
    assert "keep the pseudo-inputs between these two" in said
    assert "from the model and the data: latent_dim, data_dim, posterior" in said
    assert main(["parts", "Laplace"]) == 0
    said = capsys.readouterr().out
    assert "--model.prior Laplace" in said and "--model.posterior Laplace" in said
    assert main(["parts", "StandardNormal"]) == 0
    assert "another name of Normal" in capsys.readouterr().out


def test_every_option_of_every_part_is_explained_and_can_be_given(capsys):
    for folder in PARTS:
        for name in classes_in(folder):
            assert main(["parts", name]) == 0
            lines = capsys.readouterr().out.splitlines()
            for line, after in zip(lines, [*lines[1:], ""], strict=True):
                if line.startswith("  --model."):
                    assert after.startswith("      "), f"{name}: {line} is not explained"
                    assert "? (" not in line or ".groups" in line, line


@pytest.mark.parametrize(
    ("name", "said"),
    [("Vamp", 'did you mean "VampPrior"?'), ("prior", 'did you mean "priors"?'),
     ("fulnormal", 'did you mean "FullNormal"?')],
)  # fmt: skip
def test_a_wrong_name_lists_the_nearest(name, said, capsys):
    assert main(["parts", name]) == 2
    assert said in capsys.readouterr().err
