"""Mistakes on the command line: one line on stderr, exit code 2, nothing left half-written."""

import signal
import subprocess
import sys

import numpy as np
import pytest

import pyro_vae as pv
from pyro_vae.cli import main

FIT = ["fit", "bernoulli_vae", "--model.hidden_dim", "4", "--steps", "2"]
GOOD = """
import pyro, torch, pyro.distributions as dist
import pyro_vae as pv

class Mine(pv.Program):
    def __init__(self, data_dim, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(data_dim) + 0.1 * width)
        self.shift = torch.nn.Parameter(torch.zeros(1))
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z * self.weight).to_event(1), obs=x)
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.shift, 1.0).to_event(1))

def build(data_dim, *, width: int = 1, depth: "int | None" = None, bright=False, prior=None):
    return Mine(data_dim, width)
"""


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Runs a command that must be refused in one line, and leave no file; returns the line."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        before = sorted(tmp_path.rglob("*"))
        assert main(list(map(str, arguments))) == 2
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if " rows of " not in line]  # of data read
        assert len(lines) == 1 and "Traceback" not in said, said
        after = [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(path)]
        assert after == before
        return said

    return call


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fot", "bernoulli_vae"], 'unknown "fot", did you mean "fit"?'),
        (["fit"], "which model?"),
        (["fit", "bernouli_vae", "--steps", "2"], 'did you mean "bernoulli_vae"?'),
        ([*FIT, "--data", "digts"], "did you mean 'digits'"),
        ([*FIT, "--objective", "AEBV"], 'unknown "AEBV", did you mean "AEVB"?'),
        ([*FIT, "--optimizer", "adma"], 'did you mean "adam"?'),
        ([*FIT, "--model.lattent_dim", "3"], 'did you mean "--model.latent_dim"?'),
        ([*FIT, "--objective.particles", "3"], 'did you mean "--objective.num_particles"?'),
        ([*FIT, "--bath-size", "3"], 'did you mean "--batch_size"?'),
        ([*FIT, "--model.prior", "x"], '--model.prior: unknown "x"'),
        ([*FIT, "--model.latent_dim", "0"], "latent_dim is 0"),
        ([*FIT, "--model.latent_dim", "two"], "--model.latent_dim is 'two', expected a whole"),
        ([*FIT, "--model.latent_dim"], "--model.latent_dim needs a value"),
        ([*FIT, "--objective.estimator", "C"], "--objective.estimator is 'C', expected A or B"),
        ([*FIT, "--objective.num_particles", "0"], "num_particles is 0"),
        ([*FIT, "--lr", "nan"], "--lr is 'nan', expected a finite number"),
        ([*FIT, "--lr", "-inf"], "--lr"),
        ([*FIT, "--lr", "0"], "lr is 0"),
        ([*FIT, "--batch_size", "0"], "batch_size is 0"),
        ([*FIT, "--engine", "turbo"], "turbo"),
        ([*FIT, "--device", "quantum"], "--device quantum"),
        ([*FIT, "--binarize", "maybe"], "expected default or none or threshold"),
        ([*FIT, "--samples", "5"], "exactly one of samples, epochs and steps"),
        ([*FIT[:4], "--samples", "-5"], "samples is -5"),
        (FIT[:4], "exactly one of samples, epochs and steps"),
        ([*FIT, "--resume"], "--resume needs a folder"),
        ([*FIT, "second_model"], 'unexpected "second_model"'),
        ([*FIT, "--config", "missing.yaml"], "--config missing.yaml: no such file"),
        (["evidence", "digits"], 'unknown "digits"'),
        (["evidence", "."], "holds no checkpoint.json"),
        (["evidence", "linear_gaussian", "--num_particles", "0"], "num_particles is 0"),
        (["evidence", "linear_gaussian", "--num_data", "0"], "--num_data is 0"),
        (["data", "lst"], 'did you mean "list"?'),
        (["data", "get"], "needs the name"),
        (["data", "get", "mnits"], "did you mean 'mnist'"),
        (["data", "verify", "../mnist"], "expected one of"),
        (["compare", "--objectives", "[AEBV]"], 'unknown "AEBV", did you mean "AEVB"?'),
        (["compare", "--data", "digts"], "did you mean 'digits'"),
        (["compare", "--latent_dim", "0"], "latent_dim is 0"),
        (["compare", "--samples", "-5"], "samples is -5"),
        (["compare", "--lr", "nan"], "--lr is 'nan'"),
        (["compare", "--samples", "many"], "--samples is 'many'"),
        (["compare", "digits"], 'unexpected "digits"'),
    ],
)  # fmt: skip
def test_a_wrong_option_is_told_with_the_right_one(arguments, said, refused):
    assert said in refused(*arguments)


@pytest.mark.parametrize("verb", ["check", "fit", "evidence"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import torch\ndef build(:\n", "mine.py:2: invalid syntax"),
        ("def biuld(data_dim): ...\n", 'did you mean "biuld"?'),
        ("x = 1\n", "has no function build"),
        ("build = 3\n", "has no function build"),
        ("import sys\nsys.exit(0)\n", "mine.py:2: sys.exit(0)"),
        ("import tensorfloat\n", "mine.py:1: ModuleNotFoundError"),
        (
            "def build(data_dim):\n    raise RuntimeError('no\\nway')\n",
            "mine.py:2: RuntimeError: no",
        ),
        ("def build(data_dim):\n    raise SystemExit(0)\n", "mine.py:2: sys.exit(0)"),
        ("def build(data_dim):\n    return None\n", "build returned NoneType"),
        ("def build(data_dim, *, width: int): ...\n", "--model.width is needed"),
    ],
)
def test_a_broken_model_file_is_told_with_file_and_line(verb, text, said, tmp_path, refused):
    (tmp_path / "mine.py").write_text(text)
    budget = ["--steps", "2"] if verb == "fit" else []
    assert said in refused(verb, tmp_path / "mine.py", *budget)


def test_a_model_that_fails_while_it_runs_is_told_with_file_and_line(tmp_path, refused):
    """Its own line is what its author can mend, not ours."""
    text = GOOD.replace("z * self.weight", "z * self.wieght")
    (tmp_path / "mine.py").write_text(text)
    line = text.splitlines().index(next(t for t in text.splitlines() if "wieght" in t)) + 1
    said = refused("fit", "mine.py", "--steps", "2", "--out", tmp_path / "run")
    assert f"mine.py:{line}" in said and "wieght" in said


@pytest.mark.parametrize("verb", ["check", "fit", "evidence"])
def test_a_value_error_of_a_models_own_is_told_with_file_and_line(verb, tmp_path, capsys):
    """Ours say what to do; one of a user's own says nothing about where it comes from."""
    text = GOOD.replace(
        '        with pyro.plate("data", len(x)):', "        raise ValueError('my own')"
    )
    text = "\n".join(line for line in text.splitlines() if not line.startswith(" " * 12))
    (tmp_path / "mine.py").write_text(text)
    budget = ["--steps", "2"] if verb == "fit" else []
    assert main([verb, str(tmp_path / "mine.py"), *budget]) == 2
    said = capsys.readouterr().err
    lines = [n for n, t in enumerate(text.splitlines(), 1) if "my own" in t]
    assert "my own" in said and any(f"mine.py:{n})" in said for n in lines)


def test_check_names_each_mistake_of_a_model_in_a_line_of_its_own(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        GOOD.replace('sample("z", dist.Normal(self', 'sample("u", dist.Normal(self')
    )
    assert main(["check", str(tmp_path / "mine.py")]) == 2
    said = capsys.readouterr().err
    assert "mistake" in said and "Traceback" not in said and len(said.splitlines()) > 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.py:build", "no such file"),
        ("folder.py:build", "is a directory"),
        ("a.txt:build", "Python file"),
        ("./folder", "is a directory"),
    ],
)  # fmt: skip
def test_a_path_that_is_no_python_file_is_refused(name, said, tmp_path, refused):
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").write_text("")
    assert said in refused("fit", name, "--steps", "2")


def test_a_model_file_of_ones_own_trains_and_is_loaded_with_its_flags(tmp_path, capsys):
    """It may print at import; a bare switch is true; a saved run of it needs the file again."""
    path, out = tmp_path / "mine.py", str(tmp_path / "run")
    path.write_text("print('hello')\n" + GOOD)
    flags = ["--model.width", "2", "--model.depth", "None", "--model.bright"]
    assert main(["fit", f"{path}:build", *flags, "--steps", "2", "--out", out]) == 0
    assert "hello" in capsys.readouterr().out
    assert main(["evidence", out, "--num_data", "3"]) == 2
    assert "--program path/to/file.py:build" in capsys.readouterr().err
    few = ["--num_data", "3", "--num_particles", "30"]
    assert main(["evidence", out, "--program", str(path), "--model.width", "2", *few]) == 0
    assert main(["fit", str(path), "--help"]) == 0
    assert "--model.width" in capsys.readouterr().out


def test_damaged_missing_and_impossible_data_files_are_told(tmp_path, refused):
    rows = (np.arange(60).reshape(20, 3) % 2).astype(float)
    np.save(tmp_path / "good.npy", rows)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-8])
    (tmp_path / "other.npz").write_text("no zip")
    (tmp_path / "words.csv").write_text("a,b\n1,x\n2,y\n")
    np.save(tmp_path / "grey.npy", rows + 0.3)
    np.save(tmp_path / "nan.npy", rows * np.nan)
    (tmp_path / "folder").mkdir()
    for name, said in {
        "cut.npy": "damaged file", "other.npz": "other bytes", "words.csv": "words.csv",
        "none.csv": "no such file", "folder/": "is a directory", "nan.npy": "nan.npy",
        "grey.npy": "x",
    }.items():  # fmt: skip
        out = tmp_path / "new" / "run"
        assert said in refused(*FIT, "--data", tmp_path / name, "--out", out)
        assert not (tmp_path / "new").exists()
    assert main([*FIT, "--data", str(tmp_path / "good.npy"), "--binarize", "threshold"]) == 0


def test_an_output_folder_that_cannot_be_made_is_told_before_any_work(tmp_path, refused):
    (tmp_path / "file").write_text("")
    for arguments in (["compare"], FIT, ["evidence", "logistic_lvm"]):
        said = refused(*arguments, "--out", tmp_path / "file" / "out")
        assert "--out" in said and "Not a directory" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [1\n", "run.yaml:"),
        ("just words\n", "holds no options"),
        ("stepz: 3\n", 'did you mean "--steps"?'),
        ("lr: fast\n", "--lr is 'fast'"),
        ("model: {name: bernoulli_vae, latent_dims: 3}\nsteps: 1\n", "--model.latent_dim"),
    ],
)
def test_a_wrong_config_file_is_told(text, said, tmp_path, refused):
    (tmp_path / "run.yaml").write_text(text)
    assert said in refused("fit", "bernoulli_vae", "--config", "run.yaml")


def test_a_run_scored_on_other_data_is_warned_about(tmp_path, capsys):
    """Binarized otherwise, log p(x) differs by many nats and looks like any other number."""
    main([*FIT, "--out", str(tmp_path)])
    few = ["--num_data", "3", "--num_particles", "30"]
    capsys.readouterr()
    main(["evidence", str(tmp_path), *few])
    assert "other data" not in capsys.readouterr().err
    main(["evidence", str(tmp_path), "--binarize", "static", *few])
    said = capsys.readouterr().err
    assert "pyro-vae evidence: warning: the run was trained on other data" in said


def test_a_damaged_run_is_refused(tmp_path, capsys):
    main([*FIT, "--out", str(tmp_path)])
    path = next(tmp_path.glob("tensors-*"))
    path.write_bytes(path.read_bytes()[:-4])
    capsys.readouterr()
    assert main(["evidence", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert path.name in said and len(said.strip().splitlines()) == 1


def test_the_users_signal_handler_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    main(["data", "list"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_process_ends_with_code_2_and_one_line_as_well(tmp_path):
    """The same in a process of its own, where warnings and imports speak for themselves."""
    (tmp_path / "mine.py").write_text("import sys\nsys.exit(0)\n")
    done = subprocess.run(
        [sys.executable, "-m", "pyro_vae.cli", "fit", "mine.py", "--steps", "1"],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    said = [line for line in done.stderr.splitlines() if "No CUDA runtime" not in line]  # torch's
    assert len(said) == 1 and pv.__name__ not in said[0]


def test_an_option_of_build_that_takes_the_models_own_name_is_refused(refused, tmp_path):
    """In a YAML file `name` says which model it is."""
    (tmp_path / "named.py").write_text(
        "def build(data_dim, *, name: str = 'a'):\n    return None\n"
    )
    said = refused("check", f"{tmp_path / 'named.py'}:build")
    assert 'build has an option called "name"' in said and "another name" in said
