"""Ctrl-C and SIGTERM at any moment of a command: one line on stderr, exit code 130 or 143."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import pyro_vae as pv
from pyro_vae.cli import main

SMALL = ["--model.latent_dim", "2", "--model.hidden_dim", "8"]
STOPS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]

# Where the signal arrives, as the file of a model that is imported.  ``send()`` sends it.
PLACES = {
    "at import": "send()",
    "in an import that becomes another error": """
        try:
            send()
        except BaseException:
            raise RecursionError("the half of a library")
    """,
    "in an import that takes it for a mistake of the file's": """
        try:
            send()
        except BaseException as error:
            raise ImportError("C extension failed") from error
    """,
    "in a finalizer, which drops what is raised": """
        class Last:
            def __del__(self):
                send()
        Last()
        time.sleep(20)
    """,
    "in an import in C, which prints what was raised": """
        try:
            send()
        except BaseException as error:
            if not isinstance(error, SystemExit):  # at that C ends the process
                sys.excepthook(type(error), error, error.__traceback__)
            raise ImportError("C extension failed")
    """,
    "in build": """
        def build(data_dim):
            send()
    """,
    "while the model runs": """
        import pyro_vae.models.linear_gaussian as other
        def build(data_dim):
            program = other.build(data_dim)
            program.model = lambda x: send()
            return program
    """,
}


def model_file(folder, place, number):
    path = folder / "mine.py"
    send = f"import os, sys, time\ndef send():\n    os.kill(os.getpid(), {int(number)})\n"
    path.write_text(send + "    time.sleep(20)\n" + textwrap.dedent(PLACES[place]))
    return path


@pytest.mark.parametrize(("number", "code", "word"), STOPS)
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_is_told_wherever_it_arrives(place, number, code, word, tmp_path, capsys):
    """None of these leaves with the code of a mistake, goes on, or shows a traceback."""
    path, out = model_file(tmp_path, place, number), tmp_path / "new" / "run"
    before = signal.getsignal(number), sys.unraisablehook, sys.excepthook
    started = time.monotonic()
    assert main(["fit", str(path), "--steps", "2", "--out", str(out)]) == code
    assert time.monotonic() - started < 15, "it was raised again after it was dropped"
    assert capsys.readouterr().err == f"pyro-vae fit: {word}\n"
    assert not (tmp_path / "new").exists()
    assert (signal.getsignal(number), sys.unraisablehook, sys.excepthook) == before


def test_a_finalizers_own_error_is_still_shown(tmp_path, capsys):
    """Only what a signal raised is kept quiet."""
    path = tmp_path / "mine.py"
    path.write_text("class Last:\n    def __del__(self):\n        raise OSError('disk')\nLast()\n")
    shown = []
    before, sys.unraisablehook = sys.unraisablehook, lambda what: shown.append(what.exc_type)
    try:
        main(["fit", str(path), "--steps", "2"])
    finally:
        sys.unraisablehook = before
    assert shown == [OSError]


@pytest.fixture
def start():
    """Starts the command in a process of its own, which ends with the test."""
    started = []

    def call(*arguments, **options):
        command = [sys.executable, "-m", "pyro_vae.cli", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, **pipes, **options))
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.communicate()


def wait_for(path, process):
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


# The other signal ends a process of its own in test_signals_of_fit.py, quickly too.
@pytest.mark.parametrize(
    ("number", "code", "word"), [pytest.param(*STOPS[0], marks=pytest.mark.slow), STOPS[1]]
)
def test_a_signal_saves_the_run_and_says_how_to_go_on(number, code, word, start, tmp_path):
    out = tmp_path / "run"
    flags = ["--out", out, "--epochs", "1e6", "--checkpoint_every", "0.1", "--engine", "pyro"]
    process = start("fit", "bernoulli_vae", *SMALL, *flags)
    wait_for(out / "checkpoint.json", process)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert word in said and "--resume" in said and len(said.strip().splitlines()) == 1
    assert pv.load(out).manifest["stopped"] == "unfinished"


def test_a_second_signal_ends_a_process_that_does_not_obey_the_first(start, tmp_path):
    """A model may catch everything; nobody shall have to look for `kill`."""
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            """
            import time
            from pathlib import Path
            while True:
                try:
                    Path("there").touch()
                    time.sleep(60)
                except BaseException:
                    Path("caught").touch()
            """
        )
    )
    process = start("check", "mine.py", cwd=tmp_path)
    for name in ("there", "caught"):
        wait_for(tmp_path / name, process)
        process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "pyro-vae check: interrupted\n")
    assert process.returncode == 130


def test_a_signal_that_the_caller_ignores_stays_ignored(tmp_path):
    """`nohup` and a shell's `&` rely on it."""
    (tmp_path / "mine.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise OSError('went on')\n"
    )
    ignore = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    run = "os.execv(sys.executable, [sys.executable, '-m', 'pyro_vae.cli', 'check', 'mine.py'])"
    done = subprocess.run(
        [sys.executable, "-c", ignore + run],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "went on" in done.stderr


def test_a_reader_that_leaves_early_sees_no_traceback():
    """`pyro-vae data list | head -1` ends with the code of SIGPIPE."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "pyro_vae.cli", "data", "list"],
        stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 141 and done.stderr == ""
