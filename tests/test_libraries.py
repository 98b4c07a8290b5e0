"""Machine code that was compiled before: found by its graph, loaded without the compiler."""

import copy
import shutil
import subprocess
import sys

import pytest
import torch

from pyro_vae.graphs import compiling, libraries
from pyro_vae.graphs.compiling import machine_code, machine_code_of_either
from pyro_vae.graphs.libraries import key_of
from pyro_vae.graphs.lifted import Refusal
from pyro_vae.graphs.tracing import traced
from pyro_vae.torch_internals import CACHE, Library

X, Y = torch.linspace(0, 1, 12).reshape(3, 4), torch.zeros(3, 4)
HELD = torch.arange(4.0)


def waves(x, y):
    y.copy_(x.exp())
    return [(x * HELD).sin() + y]


GRAPH = traced(waves, X, Y.clone())


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A cache with the code of that graph in it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(folder))
        assert not isinstance(machine_code(GRAPH, X, Y), Refusal)
        other = traced(lambda x, y: [x.cos(), y.copy_(x)][:1], X, Y.clone())
        assert not libraries.with_constants_as_arguments(other)[1]
        assert not isinstance(machine_code(other, X, Y), Refusal)
    return folder


@pytest.fixture
def cache(compiled, tmp_path, monkeypatch):
    shutil.copytree(compiled, tmp_path / "cache")
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "pyro_vae"


@pytest.fixture
def no_compiler(monkeypatch):
    """What is compiled all the same."""
    asked = []

    def compile_(graph, tensors, options, *, afresh=False):
        asked.append(options.get("cpp_wrapper", False))
        raise RuntimeError("nothing is compiled here")

    monkeypatch.setattr(compiling, "machine_code_of", compile_)
    return asked


def check(code):
    for x in (X, X + 1):
        y = Y.clone()
        (got,) = code(x, y)
        torch.testing.assert_close(got, (x * HELD).sin() + x.exp())
        torch.testing.assert_close(y, x.exp())


def test_it_is_loaded_and_not_compiled(cache, no_compiler):
    assert len(list(cache.iterdir())) == 2
    check(machine_code(GRAPH, X, Y))
    check(machine_code(copy.deepcopy(GRAPH), X, Y))
    assert not no_compiler
    assert isinstance(machine_code(GRAPH, X[:2], Y[:2]), Refusal)  # another form
    assert no_compiler


def test_tensors_that_a_graph_holds_are_not_a_part_of_its_code(cache, no_compiler):
    other = traced(lambda x, y: [(x * (HELD + 0)).sin() + y.copy_(x.exp())], X, Y.clone())
    assert isinstance(machine_code(other, X, Y), Refusal)
    held = HELD.flip(0).contiguous()
    moved = copy.deepcopy(GRAPH)
    (node,) = moved.graph.find_nodes(op="get_attr")
    setattr(moved, node.target, held)
    no_compiler.clear()
    code, y = machine_code(moved, X, Y), Y.clone()
    torch.testing.assert_close(code(X, y)[0], (X * held).sin() + X.exp())
    assert not no_compiler


def test_what_is_written_is_seen_and_what_is_made_is_no_graph_of_autograd(cache):
    code, x, y = machine_code(GRAPH, X, Y), X.clone().requires_grad_(), Y.clone()
    before = y._version, x._version
    with torch.autocast("cpu", torch.bfloat16):
        (made,) = code(x, y)
    assert not made.requires_grad and made.dtype == torch.float32
    assert y._version > before[0] and x._version == before[1]


def test_who_keeps_one_twice_leaves_one_name(cache):
    (before, *_), names = cache.iterdir(), {path.name for path in cache.iterdir()}
    libraries.keep(before.stem, Library(before))
    assert {path.name for path in cache.iterdir()} == names


def test_one_that_raises_is_forgotten(cache, monkeypatch):
    def broken(self, *tensors):
        raise RuntimeError("expected size 6==6, stride 8==4")

    monkeypatch.setattr(Library, "__call__", broken)
    code = machine_code(GRAPH, X, Y)  # builds it anew, which is of no use here
    assert isinstance(code, Refusal) and "expected size" in str(code)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.undo()


@pytest.mark.parametrize("damage", ["other", "half", "empty", "no library"])
def test_a_damaged_one_is_built_anew(cache, damage):
    plain, held = libraries.with_constants_as_arguments(GRAPH)
    key = key_of(plain, [X, Y, *held], {"size_asserts": True})
    own = cache / f"{key}.so"
    (other,) = [path for path in cache.iterdir() if path != own]
    whole, own_before = own.read_bytes(), own.stat().st_ino
    own.unlink()  # its memory is in use
    bad = {"half": whole[: len(whole) // 2], "empty": b"", "no library": b"#!" + bytes(100)}
    own.write_bytes(other.read_bytes() if damage == "other" else bad[damage])
    check(machine_code(GRAPH, X, Y))
    assert own.read_bytes()[:4] == b"\x7fELF" and own.stat().st_ino != own_before
    assert {path.suffix for path in cache.iterdir()} == {".so"}


def key(function=waves, x=X, y=Y, **options):
    plain, held = libraries.with_constants_as_arguments(traced(function, x.clone(), y.clone()))
    return key_of(plain, [x, y, *held], options)


def test_whatever_changes_the_code_changes_its_name(monkeypatch):
    from torch._inductor import config

    def other(x, y):
        y.copy_(x.exp())
        return [(x * HELD).sin() + y * 1.0000000000000002]

    names = [
        key(), key(other), key(x=X[:2], y=Y[:2]), key(x=X.t().contiguous().t()),
        key(x=X.double(), y=Y.double()), key(size_asserts=False), key(size_asserts=True),
    ]  # fmt: skip
    assert key() == names[0]
    with config.patch({"cpp.simdlen": 1}):
        names.append(key())
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    names.append(key())
    torch.set_num_threads(threads)
    monkeypatch.setenv("TORCHINDUCTOR_CPP_ENABLE_FLOATING_POINT_CONTRACT_FLAG", "fast")
    names.append(key())
    monkeypatch.undo()
    monkeypatch.setattr(libraries, "_own_code", lambda: "another release")
    names.append(key())
    assert len({*names}) == len(names) and all(names)
    monkeypatch.undo()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another of each run")
    monkeypatch.setenv(CACHE, "another folder")
    assert key() == names[0]


def test_a_graph_that_does_not_say_all_of_itself_has_no_name(cache):
    graph = copy.deepcopy(GRAPH)
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    calls[-1].target = lambda *given: torch.add(*given)
    assert key_of(graph, [X, Y], {}) == ""
    with torch.library._scoped_library("test_libraries", "DEF") as own:
        own.define("twice(Tensor t) -> Tensor")
        own.impl("twice", lambda t: t * 2, "CPU")
        calls[-1].target = torch.ops.test_libraries.twice.default
        assert key_of(graph, [X, Y], {}) == ""
    libraries.keep("", Library(next(cache.iterdir())))
    libraries.make_known("", libraries.FAIL)
    assert not libraries.is_known_to("", libraries.FAIL) and libraries.loaded("", graph) is None
    assert len(list(cache.iterdir())) == 2


def test_what_cannot_be_compiled_is_not_tried_again(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path))
    tried = []

    def compile_(graph, tensors, options, *, afresh=False):
        tried.append((graph.graph.find_nodes(op="placeholder")[0].name, *options.values()))
        if options.get("cpp_wrapper"):
            raise NotImplementedError("not by C++")
        if any(node.target is torch.ops.aten.copy_.default for node in graph.graph.nodes):
            raise AssertionError("not in place")
        return graph

    monkeypatch.setattr(compiling, "machine_code_of", compile_)
    second = traced(lambda x, y: [(x * HELD).sin() + x.exp()], X, Y)
    for turn, most in enumerate((5, 1)):
        tried.clear()
        code, first = machine_code_of_either(GRAPH, second, X, Y)
        assert not first
        torch.testing.assert_close(code(X, Y)[0], (X * HELD).sin() + X.exp())
        assert len(tried) == most, (turn, tried)
    assert {p.suffix for p in (tmp_path / "pyro_vae").iterdir()} == {".python", ".fails"}


def test_where_nothing_can_be_compiled_nothing_is_remembered(tmp_path, monkeypatch, no_compiler):
    monkeypatch.setenv(CACHE, str(tmp_path))
    code, _ = machine_code_of_either(GRAPH, GRAPH, X, Y)
    assert isinstance(code, Refusal) and "nothing is compiled here" in str(code)
    assert not list(tmp_path.glob("pyro_vae/*"))


RUN = """
import sys, torch
import pyro_vae as pv
from pyro_vae.models import bernoulli_vae
torch.manual_seed(0)
x = (torch.rand(120, 6) < 0.3).float()
vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=5)
run = pv.fit(vae, x, steps=7, batch_size=50, progress=False, engine=sys.argv[1], out=sys.argv[2])
print(run.manifest["engine"], *[p.double().sum().item().hex() for p in vae.parameters()])
pv.log_evidence(vae, x, num_particles=100)
print("torch._dynamo" in sys.modules, "torch._inductor" in sys.modules)
"""


def test_a_second_process_neither_compiles_nor_imports_the_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))

    def run(number, engine):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", RUN, engine, str(tmp_path / str(number))],
            capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip
        return done.stdout.splitlines()

    (first, _), (second, imported) = run(0, "compiled"), run(1, "compiled")
    assert first == second and first.startswith("compiled")
    assert imported == "False False"
