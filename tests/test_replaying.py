"""Recording a step as a CUDA graph, with stand-ins for the device: what is copied and what kept.

On a GPU itself: tests/test_gpu.py.
"""

import contextlib

import pytest
import torch

from pyro_vae.engine.replaying import replayed


class Graph:
    """Runs again what ran while it was being recorded, on the same tensors."""

    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1
        self.again()


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def device(monkeypatch):
    """A recorder that calls the code anew and writes its results where the recorded ones lie."""
    made = []

    @contextlib.contextmanager
    def recording(graph):
        made.append(graph)
        yield

    for name, value in (("Stream", Stream), ("current_stream", Stream), ("CUDAGraph", Graph),
                        ("graph", recording), ("stream", contextlib.nullcontext)):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    return made


def test_parameters_stay_where_they_are_and_the_rest_is_copied_in(device):
    weight, calls = torch.zeros(3), []

    def code(w, x):
        w.add_(x)
        calls.append((w, x, w * 2))
        return [calls[-1][2]]

    run = replayed(code, [weight, torch.ones(3)], [weight])
    (graph,) = device
    w, x, result = calls[-1]  # the addresses that were recorded
    assert w is weight

    def again():
        w.add_(x)
        result.copy_(w * 2)

    graph.again = again
    weight.zero_()  # recording wrote it
    first = run(weight, torch.full((3,), 5.0))
    second = run(weight, torch.full((3,), 7.0))
    assert graph.replays == 2
    assert weight.tolist() == [12.0] * 3
    assert first[0].tolist() == [10.0] * 3 and second[0].tolist() == [24.0] * 3  # not overwritten


def test_what_cannot_be_recorded_runs_as_it_is(device, monkeypatch, caplog):
    def refuse(graph):
        raise RuntimeError("operation not permitted when stream is capturing\nsecond line")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    caplog.set_level("INFO", "pyro_vae")

    def code(w, x):
        return [w + x]

    assert replayed(code, [torch.ones(1), torch.ones(1)], []) is code
    assert "not permitted when stream is capturing" in caplog.text
    assert "second" not in caplog.text
