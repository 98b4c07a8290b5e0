"""The pages of the documentation: their Python runs, and a newcomer finds the way."""

import dataclasses
import inspect
import re
import sys
import warnings
from pathlib import Path

import matplotlib
import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli import main

from .calls import bind

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    str(path.relative_to(DOCS)): path.read_text(encoding="utf-8")
    for folder in (DOCS, DOCS / "howto")
    for path in sorted(folder.glob("*.md"))
}
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
# What a reader gives a minute is given a moment here; by `make slow` somewhat more.
SOME = {
    "samples": 1_000, "epochs": 1, "num_simulations": 200, "num_close": 2, "num_draws": 50,
    "seeds": 2, "num_particles": 100, "num_temperatures": 10,
}  # fmt: skip
FEW = SOME | {"samples": 200, "num_simulations": 20, "num_draws": 20, "num_particles": 20}


def smaller(code, budgets):
    for name, most in budgets.items():
        code = re.sub(
            rf"(?<![\w.]){name}=([\d_]+)",
            lambda m, n=name, b=most: f"{n}={min(int(m[1]), b)}",
            code,
        )
    return code


def test_budgets_are_made_smaller_and_nothing_else():
    code = "fit(x, samples=150_000, num_draws=5, batch_size=100); r.samples=3"
    assert smaller(code, SOME) == "fit(x, samples=1000, num_draws=5, batch_size=100); r.samples=3"


WITH_PYTHON = [name for name, text in PAGES.items() if BLOCK.search(text)]
# These run by `make slow` alone, with all their calls, each of which has tests of its own.
LONG = {"diagnosis.md", "report.md", "plots.md", "howto/comparing.md"}


def digits_of(train, validation, test):
    """Those that the pages load, the first so many of each part."""
    all_of_them = pv.datasets.load("digits")
    parts = {"train": train, "validation": validation, "test": test}
    few = {name: getattr(all_of_them, name)[:number] for name, number in parts.items()}
    return dataclasses.replace(all_of_them, **few)


def run_page(page, digits, budgets, monkeypatch, folder):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(pv.datasets, "load", lambda name, **options: digits)
    matplotlib.use("agg")
    code = smaller("\n".join(BLOCK.findall(PAGES[page])), budgets)
    before = set(sys.modules)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", pv.PyroVaeWarning)  # so little trained, khat is large
        torch.manual_seed(0)
        exec(compile(code, page, "exec"), {"__name__": "page"})
    for name in set(sys.modules) - before:
        assert not name.startswith("docs"), "a page is read by itself"


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page not in LONG])
def test_the_python_of_a_page_runs(page, monkeypatch, tmp_path):
    """All but the longest verbs, whose arguments stand for them."""
    for verb in ("diagnose", "compare"):
        signature = inspect.signature(getattr(pv, verb))
        monkeypatch.setattr(pv, verb, lambda *args, s=signature, **more: s.bind(*args, **more))
    run_page(page, digits_of(60, 20, 50), FEW, monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_all_of_a_page_runs(page, monkeypatch, tmp_path):
    run_page(page, digits_of(200, 30, 40), SOME, monkeypatch, tmp_path)


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_its_calls_fit_their_signatures(page):
    """Of those that are not run as well."""
    assert bind("\n".join(BLOCK.findall(PAGES[page]))) or page not in LONG


@pytest.mark.parametrize("code", ["pv.fitt(a)", "pv.plotting.coverage(a, rank=3)", "pv.elbo(x=a)"])
def test_a_call_that_does_not_fit_is_found(code):
    with pytest.raises((AttributeError, TypeError)):
        bind(code)


def links(text):
    return [target.split("#")[0] for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)]


@pytest.mark.parametrize("page", PAGES)
def test_its_links_lead_somewhere(page):
    """Sphinx sees to it as well; this needs no Sphinx."""
    for target in filter(None, links(PAGES[page])):
        assert (DOCS / page).parent.joinpath(target).resolve().exists(), f"{page} -> {target}"


@pytest.mark.parametrize(
    "words",
    ["own prior", "own likelihood", "missing values", "conditional model", "save and load",
     "progress and logging", "early stopping", "GPU", "ArviZ", "diagnosis",
     "which objective", "citing"],
)  # fmt: skip
def test_the_start_page_leads_there(words):
    """One link from the first page, so one click."""
    found = re.findall(rf"\[[^\]]*{words}[^\]]*\]\(([^)]+)\)", PAGES["index.md"])
    assert found and (DOCS / found[0]).exists()


def test_every_page_is_in_the_table_of_contents():
    toctree = re.findall(r"^```{toctree}\n(.*?)^```", PAGES["index.md"], re.M | re.S)
    listed = {line for tree in toctree for line in tree.splitlines() if line and line[0] != ":"}
    pages = {name.removesuffix(".md") for name in PAGES} - {"index"}
    assert pages == {name for name in listed if not name.startswith("api/")}
    assert "api/index" in listed


def test_every_command_it_shows_is_one(capsys):
    """Verbs and flags of the command line."""
    text = "\n".join(PAGES.values())
    shown = set(re.findall(r"^(?:\$ )?pyro-vae (\w.+?)(?:  +#.*)?$", text, re.M))
    assert len(shown) > 8
    for line in sorted(shown):
        verb, *rest = line.rstrip("\\").split()
        if verb == "data":
            continue
        asked = [
            word for word in rest if word.startswith("--model=") or word in ("bernoulli_vae", "vae")
        ]
        assert main([verb, *asked, "--help"]) == 0
        said = capsys.readouterr().out
        for flag in re.findall(r"--(?!model)[\w.-]+", line):
            assert flag in said, f"{line}: {flag}"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    """As `make docs` builds it."""
    sphinx = pytest.importorskip("sphinx.cmd.build")
    assert sphinx.main(["-q", "-W", "--keep-going", str(DOCS), str(tmp_path / "html")]) == 0
    assert (tmp_path / "html" / "howto" / "own_prior.html").is_file()
