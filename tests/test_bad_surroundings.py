"""Real processes in surroundings that are hostile: streams, folders, rights, variables, limits."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.hostile import ROWS, bomb, npy, place, saved, snapshot

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="a shell, limits and devices of Linux"),
]

RUN = f"{sys.executable} -m pyro_vae"
CSV = "\n".join(f"{i % 2},{i % 3},0.5" for i in range(40)) + "\n"
FIT = f"{RUN} fit gaussian_vae --model.hidden_dim 4 --steps 1 --engine eager"
GOOD = f"{FIT} --data good.csv --model.sigmoid_mean False"


def ran(command, folder, **variables):
    """The command by a shell, where it may take a minute on a busy machine."""
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        **variables,
    }
    env = {name: value for name, value in env.items() if value is not None}
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=env, timeout=120, check=False,
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    place(tmp_path, "good.csv", CSV)
    place(tmp_path, "good.npy", saved(ROWS))
    return tmp_path


REFUSED = {
    # command: what is said
    f"{FIT} --data missing.csv": "missing.csv: no such file",
    f"{FIT} --data bomb.npz": "more than 200 times",
    f"{FIT} --data tera.npy": "8,000,000,000,000 bytes",
    f"{FIT} --data /dev/zero": "got suffix",
    f"mkfifo p.csv; {FIT} --data p.csv; rc=$?; rm p.csv; exit $rc": "is a pipe",
    f"{FIT} --data good.csv --lr 0": "--lr is 0",
    f"{FIT} --data good.csv --config laughs.yaml": "*a repeats",
    f"{FIT} --data good.csv --out good.csv": "--out good.csv: File exists",
    f"{FIT} --data mnist --data_dir good.csv": "no such file",
    f"PYRO_VAE_DATA=good.csv {FIT} --data mnist": "no such file",
    f"HOME= XDG_CACHE_HOME= PYRO_VAE_DATA= {FIT} --data mnist": "no such file",
    f"{RUN} fit exits.py --steps 1": "exits.py:2: sys.exit(0)",
    f"{RUN} fit closes.py --steps 1": "closes.py",
    f"{RUN} fit device.py --steps 1": "default device to meta",
    f"{RUN} evidence .": "holds no checkpoint.json",
    f"{RUN} report .": "holds neither",
    f"{RUN} nothing": 'unknown "nothing"',
    f"{RUN} data list >/dev/full": "No space left on device",
    f"{RUN} --help >/dev/full": "No space left on device",
    f"ulimit -v 4000000; {FIT} --data good.csv --model.hidden_dim 1e10": "out of memory",
    f"LC_ALL=C PYTHONUTF8=0 {FIT} --data ü.csv": "no such file",
    f"PYTHONIOENCODING=ascii {FIT} --data ü.csv": "no such file",
    f"PYTHONWARNINGS=error {FIT} --data missing.csv": "no such file",
    f"{sys.executable} -O -m pyro_vae fit bernoulli_vae --data good.csv --steps 0": "steps is 0",
    f"{FIT} --data missing.csv >&-": "no such file",
    f"{FIT} --data missing.csv <&-": "no such file",
}


@pytest.mark.parametrize("command", REFUSED, ids=[f"process{i}" for i in range(len(REFUSED))])
def test_a_process_refuses_in_one_line(command, folder):
    place(folder, "bomb.npz", bomb(npy("(131072000,)", body=b""), 1000 << 20))
    place(folder, "tera.npy", npy("(1000000000000,)"))
    place(folder, "laughs.yaml", "a: &a [x]\nb: [*a, *a]\n")
    place(folder, "exits.py", "import sys\nsys.exit(0)\n")
    place(folder, "closes.py", "import sys\nsys.stdout.close()\ndef build(d): return None\n")
    place(folder, "device.py", "import torch\ntorch.set_default_device('meta')\n")
    before = snapshot(folder)
    done = ran(command, folder)
    lines = [line for line in done.stderr.splitlines() if "No CUDA runtime" not in line]  # torch's
    assert done.returncode == 2 and done.stdout == "", (done.returncode, done.stdout, done.stderr)
    assert len(lines) == 1 and REFUSED[command] in lines[0], done.stderr
    assert snapshot(folder) == before


WELL = {
    "closed stdout": (f"{GOOD} >&-", {}),
    "closed stderr": (f"{GOOD} 2>&-", {}),
    "closed stdin": (f"{GOOD} <&-", {}),
    "all closed": (f"{GOOD} <&- >&- 2>&-", {}),
    "full stderr": (f"{GOOD} 2>/dev/full", {}),
    "no HOME": (GOOD, {"HOME": None}),
    "another's HOME": (GOOD, {"HOME": "/proc/none"}),
    "no TMPDIR": (GOOD, {"TMPDIR": "/proc/none"}),
    "ASCII": (GOOD, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}),
    "narrow": (GOOD, {"COLUMNS": "1", "TERM": "nonsense"}),
    "no bytecode": (GOOD, {"PYTHONDONTWRITEBYTECODE": "1"}),
    "warnings": (GOOD, {"PYTHONWARNINGS": "ignore"}),
}


@pytest.mark.parametrize("name", WELL)
def test_a_process_works_in_bad_surroundings(name, folder):
    command, variables = WELL[name]
    before = snapshot(folder)
    done = ran(command, folder, **variables)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert snapshot(folder) == before


def test_whoever_reads_may_leave(folder):
    done = ran(f"{RUN} parts | head -n 1; exit 0", folder)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.count("\n") == 1


def test_optimized_python_gives_the_same_numbers(folder):
    """No check of the package is an assert, which -O would take out."""
    plain = ran(f"{GOOD} --seed 3", folder)
    terse = ran(GOOD.replace(" -m ", " -O -m ") + " --seed 3", folder)
    bounds = [done.stdout.splitlines()[1] for done in (plain, terse)]
    assert bounds[0] == bounds[1] and "test bound" in bounds[0]


NOBODY = {
    "unreadable": (f"{FIT} --data locked.csv", "Permission denied"),
    "model": (f"{RUN} fit locked.py --steps 1", "Permission denied"),
    "config": (f"{FIT} --data good.csv --config locked.csv", "Permission denied"),
    "out": (f"{GOOD} --out run", "--out run"),
    "run": (f"{RUN} evidence locked", "locked"),
    "data": (f"{RUN} data get mnist --data_dir data", "cannot be written"),
}


@pytest.mark.skipif(
    not shutil.which("setpriv") or not hasattr(os, "geteuid") or os.geteuid() != 0,
    reason="only root may become somebody else, by setpriv",
)
@pytest.mark.parametrize("name", NOBODY)
def test_a_process_without_rights_is_told_so(name, folder):
    command, said = NOBODY[name]
    place(folder, "locked.csv", CSV).chmod(0)
    place(folder, "locked.py", "x = 1\n").chmod(0)
    place(folder, "locked", "FOLDER").chmod(0)
    for above in (folder, *folder.parents):
        if above.stat().st_uid == 0 and above.name:
            above.chmod(above.stat().st_mode | 0o055)
    folder.chmod(0o755)
    place(folder, "home", "FOLDER").chmod(0o777)
    own = {
        "HOME": str(folder / "home"),
        "USER": "nobody",
        "LOGNAME": "nobody",
        "MPLCONFIGDIR": None,
    }
    somebody = "exec setpriv --reuid 65534 --regid 65534 --clear-groups"
    try:
        done = ran(f"{somebody} {command}", folder, **own)
    finally:
        (folder / "locked").chmod(0o700)
    if "No module named" in done.stderr or "failed to execute" in done.stderr:
        pytest.skip("nobody else may read this Python or this package")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
