"""The README: ten lines that run, links that lead somewhere, commands that are there."""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import pyro_vae as pv
from pyro_vae.paper import read

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
SMALLER = {"samples=150_000": "samples=3_000", "pv.log_evidence(vae, digits.test)":
           "pv.log_evidence(vae, digits.test[:30], num_particles=50)"}  # fmt: skip


def test_the_ten_lines_run(tmp_path, monkeypatch, capsys):
    """On a smaller budget, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    (block,) = BLOCKS
    assert len(block.replace("\n\n", "\n").splitlines()) <= 10
    for full, small in SMALLER.items():
        assert full in block
        block = block.replace(full, small)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pv.PyroVaeWarning)  # so little trained, khat is large
        exec(compile(block, "README.md", "exec"), names)
    assert "Evidence(mean -" in capsys.readouterr().out
    assert names["images"].shape == names["digits"].test.x.shape


def test_it_says_nothing_that_the_docs_say_longer():
    assert len(TEXT.splitlines()) < 120


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


def test_every_target_it_shows_is_one():
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"^make (\w+)", TEXT, re.M)) <= set(targets)


def signed(value, digits=1):
    return f"{value:.{digits}f}".replace("-", "−")


def test_its_results_are_those_of_the_numbers_that_are_kept():
    """The table, and that of the page on reproductions, say what docs/paper/figure2.json holds."""
    page = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
    table = read(ROOT / "docs" / "paper" / "figure2.json").table().xs("test", level="split")
    last = table[table.samples == 1_000_000]
    assert len(last) == 18
    for data, latent_dim in dict.fromkeys(key[:2] for key in last.index):
        aevb, sleep = (last.loc[(data, latent_dim, m)] for m in ("AEVB", "wake-sleep"))
        digits = 1 if data == "mnist" else 0
        cells = [signed(v, digits) for row in (aevb, sleep) for v in (row.published, row.ours)]
        assert f"| {' | '.join(cells)} |" in TEXT
        for row in (aevb, sleep):
            difference = f"{'+' if row.difference >= 0 else ''}{signed(row.difference)}"
            assert f"| {signed(row.published)} | {signed(row.ours)} | {difference} |" in page
