"""How long a new process takes to its first step, with and without machine code of earlier ones.

    python benchmarks/start_up.py [--rounds 5] [--cold 1] [--json FILE]

Each number is that of processes of their own: imports, the call of ``pv.fit`` to its first update,
the second call in the same process, log p(x) of 100 images, and the command line to the first line
of progress.  Cold: a compile cache that is empty, but for what all caches of a machine share.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

from machine import about

PROGRAM = """
import time
began = time.perf_counter()
import torch, pyro
libraries = time.perf_counter()
import pyro_vae as pv
from pyro_vae.engine.fused import FusedStep
from pyro_vae.models import bernoulli_vae
imported = time.perf_counter()
import warnings
warnings.simplefilter("ignore", pv.PyroVaeWarning)
moments = []
answer = FusedStep.answer
def noted(self, asks):
    result = answer(self, asks)
    moments.append(time.perf_counter())
    return result
FusedStep.answer = noted
torch.manual_seed(0)
x = (torch.rand(1500, 64) < 0.13).float()
vae = bernoulli_vae.build(64, latent_dim=2, hidden_dim=128)
found = {"torch and pyro": libraries - began, "pyro_vae": imported - libraries}
for name in ("pv.fit to its first step", "pv.fit once more"):
    moments.clear()
    called = time.perf_counter()
    pv.fit(vae, x, steps=2, engine="compiled", progress=False)
    found[name] = moments[0] - called
called = time.perf_counter()
pv.log_evidence(vae, x[:100], num_particles=1000)
found["log p(x) of 100 images, K 1000"] = time.perf_counter() - called
import json
print(json.dumps(found))
"""


def process(cache: str) -> dict[str, float]:
    """The times of one process with this compile cache."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def command_line(cache: str) -> dict[str, float]:
    """``pyro-vae fit`` on digits in a terminal: to the first line of progress, and to its end."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["fit", "bernoulli_vae", "--steps", "2000", "--engine", "compiled", "--out"]
        began, first = time.perf_counter(), 0.0
        pid, terminal = pty.fork()
        if not pid:
            ioctl(0, TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            command = [sys.executable, "-m", "pyro_vae", *words, str(Path(folder) / "run")]
            os.execv(sys.executable, command)
        try:
            while shown := os.read(terminal, 4096):
                if not first and b"bound=" in shown:
                    first = time.perf_counter() - began
        except OSError:  # the other end is closed
            pass
        os.waitpid(pid, 0)
        os.close(terminal)
        end = time.perf_counter() - began
    return {"pyro-vae fit to its first progress": first, "pyro-vae fit, 2000 steps, whole": end}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", type=int, default=1, help="rounds with an empty cache")
    parser.add_argument("--json", help="write every number here")
    options = parser.parse_args()
    report: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, rounds in (("cold", options.cold), ("warm", options.rounds)):
            times: list[dict[str, float]] = []
            for _ in range(rounds):
                if name == "cold":
                    shutil.rmtree(folder)
                times.append(process(folder) | command_line(folder))
            if times:
                report[name] = {key: statistics.median(t[key] for t in times) for key in times[0]}
    columns = [*report]
    print(f"seconds, medians{'':<18}" + "".join(f"{name:>9}" for name in columns))
    for key in report[columns[0]]:
        print(f"{key:<34}" + "".join(f"{report[name][key]:>9.2f}" for name in columns))
    if options.json:
        Path(options.json).write_text(json.dumps({"machine": about(), "seconds": report}, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
