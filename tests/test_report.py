"""The report: one whole file, escaped, whose page answers to pointer and keyboard in a browser."""

import base64
import io
import re
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from PIL import Image

import pyro_vae as pv
from pyro_vae.calibration import simulated_ranks
from pyro_vae.cli import main
from pyro_vae.comparison import Comparison
from pyro_vae.diagnostics.findings import Finding
from pyro_vae.models import bernoulli_vae
from pyro_vae.reporting import writing
from pyro_vae.reporting.plane import plane_of

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NASTY = "<script>alert('x')</script>&amp;"


@pytest.fixture(scope="module")
def digits():
    return pv.datasets.load("digits")


@pytest.fixture(scope="module")
def run(digits):
    torch.manual_seed(0)
    vae = bernoulli_vae.build(64, latent_dim=2, hidden_dim=16, init_std=None)
    return pv.fit(
        vae, digits.train, samples=4_000, validation=digits.validation, progress=False
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(run, digits, tmp_path_factory):
    """The report of a run, with all there is."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    few = digits.test[:60]
    findings = (
        Finding("weights", "bad", f"For 3 of 60 data khat exceeds 0.7 {NASTY}"),
        Finding("calibration", "good", "The ranks are uniform.", 0.01),
    )
    ranks = simulated_ranks(run.program, num_simulations=100, num_draws=19)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pv.PyroVaeWarning)  # of few draws
        evidence = pv.log_evidence(run.program, few, num_particles=100)
    weights = SimpleNamespace(evidence=evidence)
    parts = {"weights": weights, "calibration": SimpleNamespace(ranks=ranks)}
    found = pv.Diagnosis("Diagnosis", findings, parts, 0.01, run.program, few.rows())
    return pv.report(run, few, out, title=NASTY, diagnosis=found)


@pytest.fixture(scope="module")
def compared():
    """A comparison of two objectives and two seeds, as it is read from a file."""
    rng = np.random.default_rng(0)
    dims = ("model", "objective", "seed")
    curve = np.broadcast_to(np.linspace(-30, -20, 12), (1, 2, 2, 12))
    samples = np.broadcast_to(100.0 * np.arange(1, 13), (1, 2, 2, 12))
    scores = {n: ((*dims, "datum"), rng.normal(size=(1, 2, 2, 30)))
              for n in ("bound", "log_evidence", "standard_error", "khat", "rhat")}  # fmt: skip
    totals = {n: (dims, np.full((1, 2, 2), 1200.0)) for n in ("samples", "seconds", "leapfrogs")}
    return xr.Dataset(
        scores | totals
        | {f"curve_{n}": ((*dims, "record"), v)
           for n, v in (("samples", samples), ("bound", curve), ("seconds", samples / 100))},
        coords={"model": ["<b>vae"], "objective": ["AEVB()", "WakeSleep()"], "seed": [0, 1]},
        attrs={"data": NASTY, "binarize": "threshold", "test_digest": "ab" * 32},
    )  # fmt: skip


def text_of(page):
    return page.read_text(encoding="utf8")


def test_one_file_holds_everything(page):
    text = text_of(page)
    assert page.stat().st_size < 2e6
    assert not re.search(r'(src|href)="(?!data:|#)', text) and "url(" not in text
    assert "<html lang=" in text and "<title>" in text
    assert re.findall(r'<h2 id="(\S+)-title"', text) == [
        "what", "curves", "samples", "reconstructions", "plane", "latents", "trust", "again",
    ]  # fmt: skip
    assert "Not drawn" not in text
    assert list(page.parent.iterdir()) == [page]  # and nothing half-written


def test_words_of_the_diagnosis_and_numbers_stand_on_the_page(page, run, digits):
    text = text_of(page)
    assert '<div class="bad">' in text and "The ranks are uniform." in text
    assert "1 of 2 answers are marked ! as bad" in text
    bound = pv.elbo(run.program, digits.test[:60]).mean().item()
    assert f"{bound:.2f}".replace("-", "−") in text
    assert f"steps={run.manifest['steps']}, batch_size=100, seed=0" in text
    assert (
        run.manifest["data_digest"][:12] in text and "2.13" in text
    ) or torch.__version__ in text


def test_what_users_name_is_escaped(page, compared, tmp_path):
    for text in (
        text_of(page),
        text_of(pv.report(Comparison({}, compared), out=tmp_path / "c.html")),
    ):
        assert "<script>alert" not in text and "&lt;script&gt;alert" in text
        assert "<b>vae" not in text


def test_the_plane_holds_what_the_program_decodes(run):
    plane = plane_of(run.program)
    picture = Image.open(io.BytesIO(base64.b64decode(plane.source.partition(",")[2])))
    column, row = 3, 5  # from below
    z = torch.special.ndtri(torch.tensor([plane.u_across[column], plane.u_up[row]]))
    assert plane.across[column] == pytest.approx(z[0].item(), abs=0.01)
    assert plane.up[row] == pytest.approx(z[1].item(), abs=0.01)
    left, top = column * 9, (plane.rows - 1 - row) * 9
    tile = np.asarray(picture)[top : top + 8, left : left + 8]
    made = pv.decode(run.program, z[None])[0].reshape(8, 8)
    np.testing.assert_allclose(tile / 255, made, atol=0.01)


def test_planes_of_more_and_of_fewer_latents(digits):
    wide = bernoulli_vae.build(64, latent_dim=4, hidden_dim=8)
    plane = plane_of(wide, digits.test[:50])
    assert "two of 4 numbers of z that the data move most" in plane.rest
    line = plane_of(bernoulli_vae.build(64, latent_dim=1, hidden_dim=8))
    assert (line.rows, line.names) == (1, ["z"])
    with pytest.raises(ValueError, match="no image"):
        plane_of(bernoulli_vae.build(10, latent_dim=2))


def test_a_table_has_a_page_without_a_map(tmp_path):
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=["a<b", "b", "c"])
    program = pv.VAE.build(
        frame, likelihood=pv.likelihoods.Gaussian(sigmoid_mean=False), latent_dim=2
    )
    place = pv.report(program, frame, tmp_path / "t.html", diagnosis="none")
    text = text_of(place)
    assert "Not drawn: a datum is no image" in text and 'id="plane-map"' not in text
    assert "It was left out" in text and text.count("<img") == 5


def test_a_run_without_a_guide_has_a_page(run, digits, tmp_path):
    mcem = pv.Run(run.program, run.history, {**run.manifest, "objective": "MonteCarloEM()"})
    text = text_of(pv.report(mcem, digits.test[:20], tmp_path / "m.html"))
    assert "trained without a guide" in text and "reconstructions" not in text


def test_a_comparison_on_disk_is_reported(compared, tmp_path, capsys):
    Comparison({}, compared).save(tmp_path / "comparison.nc")
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    text = text_of(out)
    table = Comparison({}, compared).table()
    assert f"{table['log p(x)'].iloc[1]:.2f}".replace("-", "−") in text
    assert text.count("<img") == 3 and "Not drawn" not in text


def test_a_saved_run_is_reported(run, digits, tmp_path, capsys):
    run.save(tmp_path / "run")
    out = tmp_path / "a" / "page.html"
    command = ["report", str(tmp_path / "run"), "--num_data", "30", "--diagnosis", "none"]
    assert main([*command, "--out", str(out)]) == 0
    assert "run on digits" in text_of(out) and "30 held-out rows" in text_of(out)
    said = f"$ pyro-vae report {tmp_path / 'run'} --num_data 30 --diagnosis none --out {out}"
    assert said in text_of(out)
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_runs_in_a_comparison_show_what_they_draw(run, compared, digits, tmp_path):
    runs = {("<b>vae", o, 0): run for o in ("AEVB()", "WakeSleep()")}
    place = pv.report(Comparison(runs, compared), digits, tmp_path / "c.html")
    assert text_of(place).count("<img") == 3 + 4


def test_mistakes_are_told_before_any_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "sections_of_run", None)  # never called
    with pytest.raises(ValueError, match='diagnosis is "long", expected one of quick, full, none'):
        pv.report(run, diagnosis="long")
    with pytest.raises(TypeError, match="diagnosis is int"):
        pv.report(run, diagnosis=3)
    with pytest.raises(ValueError, match=r"is a folder, expected a file such as report.html"):
        pv.report(run, out=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        pv.report(run, out=tmp_path / "file" / "page.html")
    with pytest.raises(ValueError, match="expected that of a saved run"):
        pv.report(tmp_path / "nowhere", out=tmp_path / "page.html")
    with pytest.raises(TypeError, match="program is int"):
        pv.report(3, out=tmp_path / "page.html")


def test_a_page_that_fails_leaves_the_old_one(run, tmp_path, monkeypatch):
    place = tmp_path / "page.html"
    place.write_text("old")
    monkeypatch.setattr(writing, "_page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pv.report(run, out=place)
    assert place.read_text() == "old" and list(tmp_path.iterdir()) == [place]


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is here")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, page):
    """The page of the run, wide; afterwards nothing was said on the console or asked for."""
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    tab.wait_for_function("document.getElementById('plane-where').textContent !== ''")
    yield tab
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", page.as_uri()))] == []
    tab.close()


def state(tab):
    """What the map says, what the canvas is called, and the canvas's pixels."""
    pixels = "document.getElementById('plane-image').toDataURL()"
    return (
        tab.inner_text("#plane-where"),
        tab.get_attribute("#plane-image", "aria-label"),
        tab.evaluate(pixels),
    )


def test_the_map_answers_to_the_pointer(opened, run):
    start = state(opened)
    assert "z[0] = 0.00, z[1] = 0.00" in start[0]
    opened.locator("#plane-map").scroll_into_view_if_needed()
    box = opened.locator("#plane-map img").bounding_box()
    opened.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + 0.05 * box["height"])
    moved = state(opened)
    assert all(a != b for a, b in zip(start, moved, strict=True))
    assert re.match(r"z\[0\] = 1\.\d\d, z\[1\] = 1\.\d\d", moved[0])  # upper right: both high


def test_the_map_answers_to_the_keyboard(opened):
    start = state(opened)
    opened.focus("#plane-map")
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowDown")
    moved = state(opened)
    assert all(a != b for a, b in zip(start, moved, strict=True))
    assert re.search(r"z\[0\] = 0\.\d\d, z\[1\] = −0\.\d\d", moved[0])
    assert opened.get_attribute("#plane-where", "aria-live") == "polite"
    for _ in range(40):
        opened.keyboard.press("ArrowLeft")  # stays on the map
    opened.keyboard.press("Home")
    assert state(opened) == start
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.id") != "plane-map"  # no trap


def test_every_picture_has_a_text_and_the_page_fits_phone_and_paper(opened, browser, page):
    assert opened.locator("img").count() > 5
    assert opened.locator("img:not([alt]), img[alt='']").count() == 0
    assert opened.pdf().startswith(b"%PDF")
    opened.emulate_media(media="print")
    assert not opened.is_visible("nav") and not opened.is_visible("#plane-help")
    assert opened.is_visible("#plane-map img")
    opened.emulate_media(media="screen")
    opened.set_viewport_size({"width": 390, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_of_a_comparison_opens_in_a_browser(browser, compared, tmp_path):
    place = pv.report(Comparison({}, compared), out=tmp_path / "c.html")
    tab, said = browser.new_page(viewport={"width": 390, "height": 800}), []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(place.as_uri())
    assert tab.locator("table").count() == 1 and said == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.close()
