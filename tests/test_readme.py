"""The README's Python runs from top to bottom, and what it points to is there."""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.cli import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
SMALLER = {
    "num_simulations=1_000, num_close=5": "num_simulations=200, num_close=2",
    "samples=150_000": "samples=3_000",
    "samples=20_000": "samples=400",
    "samples=40_000": "samples=800",
    "epochs=10": "epochs=1",
    "log_evidence(vae, digits.test)": "log_evidence(vae, digits.test[:30], num_particles=50)",
    "num_draws=500": "num_draws=50",
    "num_draws=200": "num_draws=50",
}


class TutorialVAE(nn.Module):
    """What the README speaks of: modules told to Pyro's store, the pixels observed as "obs"."""

    def __init__(self, dim):
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(3, 16), nn.Softplus(), nn.Linear(16, dim))
        self.encoder = nn.Sequential(nn.Linear(dim, 16), nn.Softplus(), nn.Linear(16, 6))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            zeros = x.new_zeros((x.shape[0], 3))
            z = pyro.sample("latent", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            pixels = dist.Bernoulli(logits=self.decoder(z))
            pyro.sample("obs", pixels.to_event(1), obs=x.reshape(x.shape[0], -1))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            mean, log_scale = self.encoder(x.reshape(x.shape[0], -1)).chunk(2, -1)
            pyro.sample("latent", dist.Normal(mean, log_scale.exp()).to_event(1))


class ConditionalVAE(nn.Module):
    """Draws the pixels where there are none."""

    def __init__(self, dim):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(5, dim), nn.Linear(dim + 2, 6)

    def model(self, x=None, y=None):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            law = dist.Bernoulli(logits=self.decoder(torch.cat([z, y], -1)))
            pyro.sample("x", law.to_event(1), obs=x)

    def guide(self, x, y):
        with pyro.plate("data", len(y)):
            mean, log_scale = self.encoder(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))


def test_every_block_runs_in_order(tmp_path, monkeypatch, capsys):
    """On smaller budgets, as a reader would type them one after the other."""
    monkeypatch.chdir(tmp_path)
    x = pv.datasets.load("digits").train.rows()
    tutorial = TutorialVAE(x.shape[1])
    before = {name: value.clone() for name, value in tutorial.state_dict().items()}
    names = {"tutorial_vae": tutorial, "x": x}
    names |= {"conditional_vae": ConditionalVAE(x.shape[1]), "y": x[:, :2]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pv.PyroVaeWarning)  # so little trained, khat is large
        for number, block in enumerate(BLOCKS):
            for full, small in SMALLER.items():
                block = block.replace(full, small)
            exec(compile(block, f"README.md, Python block {number}", "exec"), names)
    assert "Evidence(mean -" in capsys.readouterr().out
    assert names["run"].manifest["samples"] >= 800
    assert all(not value.equal(before[name]) for name, value in tutorial.state_dict().items())
    assert names["images"].shape == names["digits"].test.x.shape
    assert type(names["vae"].prior).__name__ == "HeavyTails"


def test_the_promised_lengths_are_kept():
    """Ten lines, three lines."""
    assert len(BLOCKS[0].replace("\n\n", "\n").splitlines()) <= 10
    tutorial = next(block for block in BLOCKS if "tutorial_vae" in block)
    assert len(tutorial.splitlines()) == 3


def test_all_budgets_are_made_smaller_in_the_test():
    """A new number in the README would otherwise train in full."""
    python = "".join(BLOCKS)
    assert all(full in python for full in SMALLER)
    assert set(re.findall(r"(?:samples|epochs|num_draws)=[\d_]+", python)) <= set(SMALLER)


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", TEXT))
def test_what_it_points_to_is_there(target):
    assert (ROOT / target).exists()


def test_its_picture_is_small():
    """It is loaded with every look at the page."""
    assert (ROOT / "docs" / "digits.png").stat().st_size < 300_000


@pytest.mark.slow
def test_its_picture_can_be_drawn_anew(tmp_path):
    """At a small budget."""
    out = tmp_path / "digits.png"
    command = [sys.executable, ROOT / "docs" / "picture.py", "--quick", "--seeds", "1"]
    subprocess.run([*command, "--out", out], check=True, capture_output=True, timeout=300)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_every_command_it_shows_is_one(tmp_path, monkeypatch, capsys):
    """The verbs and flags of the command line, and the targets of the Makefile."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "b").mkdir(parents=True)
    for line in re.findall(r"^pyro-vae (.+?)(?:  +#.*)?$", TEXT, re.M):
        verb, *rest = line.split()
        if verb != "data":
            given = [word for word in rest if not word.startswith("path/")]
            assert main([verb, *given, "--help"]) == 0
            said = capsys.readouterr().out
            for flag in re.findall(r"--[\w.]+", line):
                assert flag in said or flag == "--help"
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"^make (\w+)", TEXT, re.M)) <= set(targets)


def test_the_page_about_diagnosis_runs_and_shows_pictures_that_are_there():
    path = ROOT / "docs" / "diagnosis.md"
    page = path.read_text(encoding="utf-8")
    scope = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pv.errors.PyroVaeWarning)
        exec("\n".join(re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)), scope)
    assert len(scope["latents"]) == 2 and len(scope["data"]) == 100
    pictures = re.findall(r"\]\((diagnosis/\w+\.png)\)", page)
    assert len(pictures) == 14 and all((path.parent / each).is_file() for each in pictures)


def test_the_page_about_parts_runs_from_top_to_bottom():
    page = (ROOT / "docs" / "parts.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.M | re.S))
    scope = {}
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pv.errors.PyroVaeWarning)
        exec(code, scope)
    assert scope["filled"]["sizes"].isfinite().all()
    assert pv.reconstruct(scope["vae"], scope["images"][:4]).shape == (4, 8, 8)
