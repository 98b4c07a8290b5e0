"""Several processes that train one program: what one process does, the same errors, one writer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from tests import among_ranks

HERE = Path(__file__).parent


def outcomes_of(size, folder, *cases):
    command = [sys.executable, str(HERE / "among_ranks.py"), str(size), str(folder), *cases]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    files = [folder / f"{rank}.pt" for rank in range(size)]
    if not all(map(Path.exists, files)):
        pytest.fail(ended.stderr)
    return [torch.load(file, weights_only=False) for file in files]


# Of each kind of exchange one; the others are of the same, and `make slow` has them.
QUICK = (
    "eager", "fewer rows than processes", "state of each datum", "shared latents",
    "validation, clip, weights", "a plateau", "a callback that ends it",
)  # fmt: skip


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return outcomes_of(2, folder, *QUICK, *among_ranks.REFUSED)


def assert_one_process_does_the_same(found, case):
    alone = among_ranks.outcome(case)
    assert "error" not in alone
    for mine in found:
        assert "error" not in mine[case], mine[case]
        assert mine[case]["manifest"] == alone["manifest"]
        for part in ("parameters", "state"):
            for name, value in alone[part].items():
                torch.testing.assert_close(mine[case][part][name], value, rtol=1e-9, atol=1e-10)
        for name, value in alone["bounds"].items():
            same = torch.tensor(mine[case]["bounds"][name])
            torch.testing.assert_close(same, torch.tensor(value), rtol=1e-7, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", QUICK)
def test_two_processes_take_the_steps_of_one(ranks, case):
    assert_one_process_does_the_same(ranks, case)


@pytest.mark.slow
def test_so_they_do_in_all_cases_and_three_and_five(tmp_path):
    for size in (2, 3, 5):
        (tmp_path / str(size)).mkdir()
        found = outcomes_of(size, tmp_path / str(size))
        for case in among_ranks.ALIKE:
            assert_one_process_does_the_same(found, case)


@pytest.mark.slow
@pytest.mark.compiled
def test_compiled_gradients_are_added_up_as_well(tmp_path):
    found = outcomes_of(2, tmp_path, "compiled")
    assert_one_process_does_the_same(found, "compiled")
    assert found[0]["compiled"]["manifest"]["engine"] == "compiled"


def test_all_ranks_hold_the_same_bits(ranks):
    for case in QUICK:
        first, second = (found[case]["parameters"] for found in ranks)
        assert all(torch.equal(first[name], second[name]) for name in first), case


SAID = {
    "batch norm": "ValueError: encoder.1 (BatchNorm1d) ties the rows of a batch, so 2 processes",
    "other data": "different things: data_digest is",
    "other seed": "seed is 0 in process 0 and in process 1 1",
    "a callback's error": "LookupError: the callback's own",
    "one rank's error": "TypeError: data is str",
    "not finite": "(of the rows of process 0)",
    "a callback that changes it": "or the objective in process 0 alone, where callbacks run",
    "interrupted": "KeyboardInterrupt: stopped by SIGINT after step 2",
}


@pytest.mark.parametrize("case", among_ranks.REFUSED)
def test_all_ranks_raise_the_same_error(ranks, case):
    first, second = (found[case]["error"] for found in ranks)
    assert first == second
    assert SAID[case] in first


def test_where_rows_are_the_sum_the_bits_are_those_of_one_process(ranks):
    """A batch of a single row is one rank's, to whose gradient the other adds nothing."""
    alone = among_ranks.outcome("fewer rows than processes")["parameters"]
    assert all(torch.equal(ranks[1]["fewer rows than processes"]["parameters"][n], p)
               for n, p in alone.items())  # fmt: skip


FIT = [
    "-m", "pyro_vae.cli", "fit", "bernoulli_vae", "--model.latent_dim", "2", "--model.hidden_dim",
    "8", "--steps", "1500", "--engine", "pyro", "--checkpoint_every", "0.2", "--resume",
]  # fmt: skip


def torchrun(size, out, **options):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", str(size), *FIT, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, **options)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are read from /proc")
def test_a_killed_process_ends_the_job_in_a_line_and_another_number_goes_on(tmp_path):
    out = tmp_path / "run"
    job = torchrun(2, out)
    while not (out / "checkpoint.json").exists():
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.05)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    said = job.communicate(timeout=120)[1]
    assert job.returncode
    ours = [line for line in said.splitlines() if line.startswith("pyro-vae fit: ")]
    ours = [line for line in ours if "warning" not in line]
    assert len(ours) == 1 and "--resume" in ours[0].replace("resume=True", "--resume"), said
    stopped = pv.load(out).manifest
    assert stopped["stopped"] == "unfinished" and 0 < stopped["steps"] < 1500
    for size, folder in ((3, out), (1, tmp_path / "alone")):
        last = torchrun(size, folder)
        assert "Traceback" not in last.communicate(timeout=200)[1] and not last.returncode
    found, expected = pv.load(out), pv.load(tmp_path / "alone")
    assert found.manifest["steps"] == expected.manifest["steps"] == 1500
    for (name, p), q in zip(
        found.program.named_parameters(), expected.program.parameters(), strict=True
    ):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4, msg=name)
