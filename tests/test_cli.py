"""The command line, run as a user runs it: in a process of its own."""

import subprocess
import sys
import time

import pytest


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "pyro_vae.cli", *arguments],
        capture_output=True, text=True, timeout=300, check=False, **options,
    )  # fmt: skip


def test_help_needs_neither_torch_nor_pyro():
    """So it answers at once; what it must not import is a fact, what it takes is the machine's."""
    code = (
        "import sys; from pyro_vae.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as e: print('exit', e.code)\n"
        "print(sorted({'torch', 'pyro', 'arviz', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "compare" in done.stdout and done.stdout.strip().endswith("exit 0\n[]")


def test_compare_prints_a_table_and_leaves_a_picture(tmp_path):
    started = time.time()
    done = run(
        "compare", "--samples", "4000", "--seeds", "1", "--hidden_dim", "8",
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "AEVB()" in done.stdout and "WakeSleep()" in done.stdout and "±" in done.stdout
    for name in ("table.csv", "curves.png", "comparison.nc"):
        assert (tmp_path / "out" / name).stat().st_mtime >= started - 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "--objectives", "[AEBV]"], 'unknown "AEBV", did you mean "AEVB"?'),
        (["compare", "--data", "digts"], "did you mean 'digits'"),
        (["compare", "--latent_dim", "0"], "latent_dim is 0"),
        (["compare", "--samples", "-5"], "samples is -5"),
        (["compare", "--lr", "nan"], "nan"),
        (["compare", "--samples", "many"], "samples"),
    ],
)
def test_a_users_mistake_is_told_on_stderr_with_exit_code_2(arguments, said, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_made_is_told_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("compare", "--out", str(tmp_path / "file" / "out"))
    assert done.returncode == 2 and "--out" in done.stderr and "Traceback" not in done.stderr
