"""Many fits in one process: memory, threads and files stay what they were."""

import gc
import logging
import os
import sys

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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_two_hundred_fits_take_no_more_than_the_first_twenty(engine, monkeypatch):
    # The test runner keeps every record of every logger; torch's trace is half a megabyte a fit.
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    logging.root.manager._clear_cache()

    def counts():
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    for _ in range(20):
        train(net(1), engine, 2)
    before, open_before = memory(), counts()
    for _ in range(200):
        train(net(1), engine, 2)
    assert (memory() - before) / 200 < 0.05
    assert counts() == open_before
