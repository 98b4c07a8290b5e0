"""The command line: what it prints, what it leaves on disk, and with which exit code it ends."""

import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd

import pyro_vae as pv
import pyro_vae.models.bernoulli_vae
from pyro_vae.cli import main
from pyro_vae.cli.running import VERBS, _own_flags

SMALL = ["--model.latent_dim", "2", "--model.hidden_dim", "8"]


def test_help_of_every_verb_needs_neither_torch_nor_pyro():
    """So it answers at once; what it must not import is a fact, what it takes is the machine's."""
    code = (
        "import sys; from pyro_vae.cli import main; from pyro_vae.cli.running import VERBS\n"
        "print('exit', main(['--help']), [main([verb, '--help']) for verb in VERBS])\n"
        "print(sorted({'torch', 'pyro', 'arviz', 'matplotlib', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(f"exit 0 {[0] * len(VERBS)}\n[]")
    for verb in VERBS:
        assert f"usage: pyro-vae {verb}" in done.stdout


def test_every_flag_is_explained(capsys):
    """A flag without a word is one that nobody dares to use."""
    assert all(flag.help for verb in VERBS for flag in _own_flags(verb))
    assert main(["fit", "bernoulli_vae", "--objective", "MonteCarloEM", "--help"]) == 0
    said = capsys.readouterr().out
    for flag in ("--model.latent_dim", "--objective.leapfrog_steps", "--samples", "--config"):
        assert flag in said
    assert "--model.prior PRIOR" in said and "--model.data_dim" not in said  # the data give it


def test_compare_prints_a_table_and_leaves_a_picture(tmp_path, capsys):
    started = time.time()
    np.save(tmp_path / "bits.npy", np.random.default_rng(0).integers(0, 2, (60, 9)))
    command = [
        "compare", "--samples", "300", "--seeds", "1", "--hidden_dim", "8",
        "--data", str(tmp_path / "bits.npy"), "--binarize", "threshold",
        "--objectives", "AEVB", "WakeSleep", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "AEVB()" in said and "WakeSleep()" in said and "±" in said
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        "comparison.nc", "curves.png", "table.csv",
    ]  # fmt: skip
    assert all(each.stat().st_mtime >= started - 1 for each in (tmp_path / "out").iterdir())


def test_check_prints_the_report(capsys):
    assert main(["check", "bernoulli_vae", "--data", "digits", *SMALL]) == 0
    assert "no mistake found" in capsys.readouterr().out


def test_fit_leaves_a_run_that_evidence_reads(tmp_path, capsys):
    """The options of build, of the objective and of fit reach the run; the numbers are its own."""
    out = tmp_path / "a" / "run"
    command = ["fit", "bernoulli_vae", *SMALL, "--objective.num-particles", "3", "--samples", "1e3",
               "--optimizer", "adam", "--seed=4", "--out", str(out)]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "AEVB(num_particles=3)" in said and "test bound -" in said
    saved = pv.load(out)
    assert saved.manifest["optimizer"] == "Adam" and saved.manifest["seed"] == 4
    assert saved.program.build_record["options"]["hidden_dim"] == 8
    history = pd.read_csv(out / "history.csv")
    pd.testing.assert_frame_equal(history, saved.history, check_dtype=False)
    assert (out / "learning_curve.png").read_bytes().startswith(b"\x89PNG")

    asked = ["--num_particles", "50", "--num_data", "12", "--out", str(tmp_path / "evidence")]
    assert main(["evidence", str(out), *asked]) == 0
    said = capsys.readouterr()
    table = pd.read_csv(tmp_path / "evidence" / "evidence.csv", index_col="datum")
    assert list(table) == ["log_evidence", *pv.Evidence._fields[1:-1]]
    assert len(table) == 12 and f"log p(x) {table.log_evidence.mean():.3f} ±" in said.out

    assert main(command) == 2  # a second run there would lose the first
    assert "pass --resume" in capsys.readouterr().err
    assert main([*command[:-1], str(out), "--resume", "--samples", "2000"]) == 0
    assert pv.load(out).manifest["samples"] >= 2000


def test_the_same_command_gives_the_same_numbers_as_the_library(tmp_path, capsys):
    """The command line adds no random draw and no default of its own."""
    from pyro_vae.models import bernoulli_vae
    from pyro_vae.noise import Stream, seeded

    main(["fit", "bernoulli_vae", *SMALL, "--steps", "5", "--seed", "3", "--out", str(tmp_path)])
    digits = pv.datasets.load("digits")
    with seeded(*Stream.PARAMETERS.key(3)):
        vae = bernoulli_vae.build(digits.dim, latent_dim=2, hidden_dim=8)
    pv.fit(vae, digits.train, steps=5, seed=3, validation=digits.validation, progress=False)
    for mine, saved in zip(vae.parameters(), pv.load(tmp_path).program.parameters(), strict=True):
        assert mine.equal(saved)


def test_a_run_without_a_guide_is_scored_by_hmc(tmp_path, capsys):
    command = ["fit", "logistic_lvm", "--objective", "MonteCarloEM", "--steps", "3"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    asked = ["evidence", str(tmp_path / "run"), "--num_data", "4", "--num_draws", "20"]
    assert main(asked) == 0
    assert "(importance, hmc)" in capsys.readouterr().out
    assert main([*asked, "--proposal", "guide"]) == 2
    assert "--proposal hmc" in capsys.readouterr().err


def test_one_yaml_file_holds_all_options_and_the_command_line_wins(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: {name: bernoulli_vae, latent-dim: 5, hidden_dim: 8, init_std: null}\n"
        "objective: {name: AEVB, estimator: A}\nsteps: 2\nweight_prior: 1\n"
    )
    out = tmp_path / "run"
    arguments = ["fit", "--config", str(config), "--model.latent_dim", "3", "--out", str(out)]
    assert main(arguments) == 0, capsys.readouterr().err
    saved = pv.load(out)
    options = saved.program.build_record["options"]
    assert (options["latent_dim"], options["hidden_dim"], options["init_std"]) == (3, 8, None)
    assert (
        saved.manifest["weight_prior"] == 1 and saved.manifest["objective"] == "AEVB(estimator='A')"
    )


def test_data_lists_gets_and_verifies(tmp_path, capsys):
    assert main(["data", "list", "--data-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in pv.datasets.names())
    assert main(["data", "get", "digits"]) == 0 and main(["data", "verify", "digits"]) == 0
    capsys.readouterr()
    assert main(["data", "verify", "mnist", "--data_dir", str(tmp_path)]) == 1
    assert "missing: run `pyro-vae data get mnist" in capsys.readouterr().out


def test_a_model_inside_the_models_folder_is_the_installed_one(tmp_path, capsys):
    """A second copy would be another class, and a saved run would not know it."""
    path = os.path.join(os.path.dirname(pv.models.__file__), "bernoulli_vae.py")
    out = str(tmp_path / "run")
    assert main(["fit", f"{path}:build", *SMALL, "--steps", "1", "--out", out]) == 0
    assert type(pv.load(out).program) is type(pv.models.bernoulli_vae.build(4, hidden_dim=2))
