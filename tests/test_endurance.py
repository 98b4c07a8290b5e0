"""Many fits in one process: memory, threads and files stay what they were."""

import gc
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from torch.fx import graph_module

from .test_threads import net, train

pytestmark = pytest.mark.filterwarnings("ignore")


def test_torch_keeps_no_source_of_a_fit():
    before = set(graph_module._loader.eval_cache)
    train(net(1), "eager", 2)
    assert set(graph_module._loader.eval_cache) == before


def memory():
    """Anonymous memory, MiB."""
    gc.collect()
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous")) / 1024


def growth(engine, first=20, then=200):
    """MiB a fit, and whether files and threads stayed as many."""

    def counts():
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    warnings.simplefilter("ignore")
    for _ in range(first):
        train(net(1), engine, 2)
    before, open_before = memory(), counts()
    for _ in range(then):
        train(net(1), engine, 2)
    print((memory() - before) / then, counts() == open_before)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_two_hundred_fits_take_no_more_than_the_first_twenty(engine):
    """In a process of their own: a test runner keeps every record that torch logs, .8 MiB a fit."""
    code = f"from tests.test_endurance import growth; growth({engine!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True,
        timeout=1800, check=True,
    )  # fmt: skip
    each, as_many = done.stdout.split()
    assert float(each) < 0.05 and as_many == "True"
