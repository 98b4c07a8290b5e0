"""Equal operations of a graph are done once, and nothing else is changed."""

import copy
import subprocess
import sys

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.engine import capture
from pyro_vae.graphs import lifting
from pyro_vae.graphs.merging import merge_equal
from pyro_vae.objectives import AEVB, IWAE, WakeSleep
from pyro_vae.objectives.base import EMPTY

from .programs import program_and_rows
from .quickly import slowly


def merged(function, *tensors):
    graph = make_fx(function)(*tensors)
    before = [r.clone() for r in graph(*tensors)]
    merge_equal(graph.graph)
    graph.recompile()
    for a, b in zip(graph(*tensors), before, strict=True):
        assert torch.equal(a, b) or bool((a.isnan() & b.isnan()).all())
    return graph, [n.target for n in graph.graph.nodes if n.op == "call_function"]


def test_equal_operations_are_one():
    _, kept = merged(
        lambda a, b: [(a + b).exp() * (a + b).exp() + (b + a)], torch.ones(2), torch.rand(2)
    )
    assert [str(t) for t in kept].count("aten.exp.default") == 1
    assert [str(t) for t in kept].count("aten.add.Tensor") == 3  # b + a is not written as a + b


@pytest.mark.parametrize("one, other", [(1, 1.0), (0.0, -0.0), (2.0, 3.0), (True, 1)])
def test_numbers_of_another_kind_or_sign_are_others(one, other):
    """1 / 0.0 is not 1 / -0.0, and whole numbers divide as whole ones."""
    a = torch.tensor([1, 2])
    _, kept = merged(lambda t: [(t * one).float() + (t * other).float() * 2], a)
    assert [str(t) for t in kept].count("aten.mul.Tensor") >= 2


def test_what_is_returned_stays_apart():
    graph, _ = merged(lambda a: [a + 1, a + 1, (a * 2).view(2), (a * 2).view(2)], torch.ones(2))
    found = graph(torch.ones(2))
    assert len({t.data_ptr() for t in found}) == 4


@pytest.mark.parametrize("name", ["bernoulli_vae", slowly("linear_gaussian")])
@pytest.mark.parametrize("objective", [AEVB("A"), AEVB("B"), IWAE(3), WakeSleep()], ids=repr)
def test_a_captured_step_is_as_small_as_by_torchs_own_pass(name, objective, monkeypatch):
    from torch._functorch.compile_utils import fx_graph_cse

    sizes = []

    def both(graph):
        theirs = fx_graph_cse(copy.deepcopy(graph))
        merge_equal(graph)
        sizes.append((len(graph.nodes), len(theirs.nodes)))

    monkeypatch.setattr(lifting, "merge_equal", both)
    program, x = program_and_rows(name)
    capture(program, objective, x, EMPTY)
    # (It also merges what is returned.)
    assert sizes and all(ours <= 1.03 * theirs for ours, theirs in sizes)


FIT = """
import sys, torch, pyro_vae as pv
from pyro_vae.models import bernoulli_vae
program, x = bernoulli_vae.build(4, latent_dim=1), torch.rand(9, 4).round()
run = pv.fit(program, x, steps=2, progress=False, engine="eager")
print(run.manifest["engine"], "torch._inductor.pattern_matcher" in sys.modules)
"""


def test_an_eager_training_loads_no_compiler():
    done = subprocess.run([sys.executable, "-c", FIT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["eager", "False"]
