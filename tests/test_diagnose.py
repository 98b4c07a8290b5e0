"""The page that says how far to trust a posterior."""

import functools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.calibration import simulate
from pyro_vae.cli import main
from pyro_vae.diagnostics import modes as of_modes
from pyro_vae.diagnostics import reliability, report
from pyro_vae.diagnostics.modes import modes, two_modes
from pyro_vae.models import bernoulli_vae, linear_gaussian

SMALL = {"num_particles": 100, "num_simulations": 300, "num_close": 3, "progress": False}
LIKE = torch.zeros(2, 4)


def oracle(change=None):
    torch.manual_seed(2)
    program = linear_gaussian.build(4, latent_dim=2, posterior="full")
    program.guide_is_exact_posterior()
    if change is not None:
        with torch.no_grad():
            change(program)
    return program


def narrow(program):
    program.guide_noise.set(program.posterior_precision().inverse() / 3)


def words_of(found):
    return " ".join(str(found).split())


def verdicts(found):
    return {finding.question: finding.verdict for finding in found.findings}


@pytest.fixture(scope="module", autouse=True)
def short():
    """Short chains, paths and refits of the data that are looked at closely: of what they find,
    tests/test_annealing.py, test_gaps.py and test_refinement.py speak."""

    def evidence(program, x, *, method="importance", **options):
        more = {"num_temperatures": 8} if method == "sandwich" else {}
        return pv.log_evidence(program, x, method=method, **options, **more)

    def refine(program, x, **options):
        return pv.refine(program, x, **{**options, "num_draws": 160, "warmup": 60})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "gaps", functools.partial(report.gaps, steps=10, num_scored=200))
        patch.setattr(reliability, "log_evidence", evidence)
        patch.setattr(of_modes, "refine", refine)
        yield


@pytest.fixture(scope="module")
def clean():
    program = oracle()
    before = {name: t.clone() for name, t in program.state_dict().items()}
    state, mode = torch.get_rng_state(), program.training
    found = pv.diagnose(program, 100, like=LIKE, **SMALL)
    assert torch.equal(state, torch.get_rng_state()) and program.training == mode
    assert all(torch.equal(t, before[name]) for name, t in program.state_dict().items())
    assert all(p.grad is None for p in program.parameters())
    return found


@pytest.fixture(scope="module")
def wrong():
    return pv.diagnose(oracle(narrow), 100, like=LIKE, **SMALL)


def test_an_exact_guide_is_clean(clean):
    assert clean.clean, str(clean)
    assert {finding.question for finding in clean.findings} >= {
        "weights", "distance", "log p(x)", "calibration", "approximation gap", "amortization gap",
        "active latents", "information", "aggregate posterior", "misspecification",
    }  # fmt: skip
    assert not any("not answered" in finding.text for finding in clean.findings)
    assert "Nothing was found against this guide" in str(clean)


def test_a_narrow_one_is_called_so(wrong):
    assert verdicts(wrong)["calibration"] == "bad"
    assert "too narrow, overconfident" in words_of(wrong)
    assert verdicts(wrong)["log p(x)"] != "good" or verdicts(wrong)["weights"] != "good"
    assert verdicts(wrong)["misspecification"] == "good"  # the data are the model's


def test_the_page_is_a_page(wrong):
    lines = str(wrong).splitlines()
    assert max(map(len, lines)) <= 88
    assert lines[0] == "Diagnosis of LinearGaussian on 100 data of the model's own"
    assert any(line.startswith("! calibration") for line in lines)


def test_tables_have_a_row_a_latent_and_a_row_a_datum(wrong):
    table, data = wrong.table(), wrong.data_table()
    assert list(table.index) == ["z[0]", "z[1]"] and table.notna().all(axis=None)
    assert (table["coverage_90"] < 0.85).all() and (table["p_calibration"] < 0.01).all()
    assert len(data) == 100 and data["khat"].notna().all()
    assert data["lower"].notna().sum() == 3 == data["approximation_gap"].notna().sum()


def test_arviz_reads_it(clean):
    idata = clean.to_arviz(num_draws=20, num_simulations=50)
    assert idata["posterior"]["z"].sizes["data"] == 100
    assert "prior_sbc" in (idata.groups() if callable(idata.groups) else idata.children)


def test_a_guide_of_one_mode_is_told_of_the_other():
    class Squares(pv.Program):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(1))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z.square(), 0.1).to_event(1), obs=x)

        def guide(self, x):
            root = x.clamp_min(0.01).sqrt()
            with pyro.plate("data", len(x)):
                law = dist.Normal(root + 0 * self.bias, 0.05 / root).to_event(1)
                pyro.sample("z", law)

    pairs = simulate(Squares(), 6, like=torch.zeros(2, 1), seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pv.PyroVaeWarning)  # of chains at a narrow mode
        (finding,) = modes(Squares(), pairs.x, torch.arange(6)).findings()
    assert finding.verdict == "bad" and "several modes (along z[0])" in finding.text


def test_where_there_is_one_mode_none_is_named():
    pairs = simulate(oracle(), 6, like=LIKE)
    assert modes(oracle(), pairs.x, torch.arange(6)).findings() == []


def test_modes_are_two_heaps_with_a_valley():
    torch.manual_seed(0)
    alone = [torch.randn(400, 300), torch.rand(400, 300), torch.randn(400, 300).exp()]
    for draws in alone:
        assert float(two_modes(draws.double())[0].double().mean()) < 0.01
    two, cut = two_modes((torch.randn(400, 300) + 6 * (torch.rand(400, 300) < 0.3)).double())
    assert two.all() and (abs(cut - 3) < 1).double().mean() > 0.95


class Discrete(pv.Program):
    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(3))

    def model(self, x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(2.0 * k[..., None], 1.0).to_event(1), obs=x)

    def guide(self, x):
        places = torch.arange(3.0)
        logits = -((x - 2 * places) ** 2) / 2 + self.logits
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=logits))


def test_what_has_no_answer_is_said_and_the_rest_answered():
    found = pv.diagnose(Discrete(), 60, like=torch.zeros(2, 1), **SMALL)
    said = verdicts(found)
    assert said["calibration"] == "good" == said["weights"]
    assert "not answered" in next(f.text for f in found.findings if "gap" in f.question)


def test_latents_that_all_data_share_are_refused():
    class Shared(pv.Program):
        def model(self, x):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(w, 1.0).expand([len(x), 1]).to_event(1), obs=x)

        def guide(self, x):
            pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match='"w" is outside'):
        pv.diagnose(Shared(), torch.zeros(30, 1), **SMALL)


def trained(folder):
    digits = pv.datasets.load("digits")
    vae = bernoulli_vae.build(digits.dim, latent_dim=2, hidden_dim=4)
    pv.fit(vae, digits.train, steps=2, engine="pyro", out=folder, progress=False)
    return str(folder)


def test_the_command_line_writes_the_page_tables_and_a_picture_a_question(
    wrong, tmp_path, capsys, monkeypatch
):
    asked = {}

    def diagnose(program, x, **options):
        asked.update(options, program=program, rows=len(x))
        return wrong

    monkeypatch.setattr(pv, "diagnose", diagnose)
    words = ["diagnose", trained(tmp_path / "run"), "--num_data", "60", "--num_simulations", "200"]
    words += ["--num_particles", "50", "--num_close", "3", "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert type(asked["program"]).__name__ == "BernoulliVAE" and asked["rows"] == 60
    given = {"num_simulations": 200, "num_particles": 50, "num_close": 3, "like": None}
    assert given.items() <= asked.items()
    assert str(wrong) in said
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert names == {
        "weights", "log_p", "calibration", "latents", "gaps", "predictions", "misspecification"
    }  # fmt: skip
    assert (tmp_path / "out" / "diagnosis.txt").read_text() in said
    assert {path.name for path in (tmp_path / "out").glob("*.csv")} == {"latents.csv", "data.csv"}
    assert main(["diagnose", str(tmp_path / "none")]) == 2


@pytest.mark.slow
def test_the_command_line_diagnoses_a_run(tmp_path, capsys):
    words = ["diagnose", trained(tmp_path / "run"), "--num_data", "60", "--num_simulations", "200"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main([*words, "--num_particles", "50", "--num_close", "3"]) == 0
    said = capsys.readouterr().out
    assert "Diagnosis of BernoulliVAE on 60 data" in said and "calibration" in said
