"""A compile cache in which a killed compilation left a half of something."""

import _ctypes
import subprocess
import sys

import pytest
import torch

from pyro_vae.graphs import cache, compiling
from pyro_vae.graphs.lifted import Refusal
from pyro_vae.graphs.lifting import lift
from pyro_vae.torch_internals import CACHE

LIBRARY = _ctypes.__file__  # one that is whole, as linkers write them
X = torch.ones(3)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path))
    (tmp_path / "ab").mkdir()
    return tmp_path / "ab"


def whole():
    with open(LIBRARY, "rb") as file:
        return file.read()


def test_a_library_is_whole_or_not(folder):
    data = whole()
    for number, size in enumerate((0, 4, 63, 64, 1000, len(data) // 2, len(data) - 1, len(data))):
        path = folder / f"c{number}.main.so"
        path.write_bytes(data[:size])
        assert cache.is_whole(path) == (size == len(data)), size
    (folder / "zeros.so").write_bytes(bytes(5000))  # room that was made and never filled
    assert not cache.is_whole(folder / "zeros.so")
    (folder / "headless.so").write_bytes(bytes(64) + data[64:])  # the head is written last
    assert not cache.is_whole(folder / "headless.so")
    (folder / "other.so").write_bytes(b"\xcf\xfa\xed\xfe" + data[4:])  # of another system
    assert cache.is_whole(folder / "other.so")


def test_what_is_broken_is_swept_out_once_and_what_is_being_written_stays(folder):
    names = ["whole.main.so", "half.main.so", "empty.so", "busy.main.so", "notes.txt"]
    for name in names:
        (folder / name).write_bytes(whole() if name.startswith("whole") else b"")
    (folder.parent / "locks").mkdir()
    with cache.FileLock(folder.parent / "locks" / "busy.lock"):
        cache.sweep()
    left = ["whole.main.so", "busy.main.so", "notes.txt"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(left)


@pytest.mark.parametrize("name", ["c1.main.so", "c1.h.gch", "c1.optimized.o"])
def test_what_the_compiler_names_is_taken_out_and_built_once_more(folder, name, monkeypatch):
    broken, built = folder / name, []
    broken.write_bytes(b"half")

    def build(graph, tensors, options, *, afresh=False):
        built.append((options.get("cpp_wrapper", False), afresh))
        if not afresh:
            raise ImportError(f"{broken}: file too short")
        return graph

    monkeypatch.setattr(compiling, "machine_code_of", build)
    graph = lift(lambda t: t + 1, X).graph
    code = compiling.machine_code(graph, X)
    assert not isinstance(code, Refusal)
    assert built == [(True, False), (False, False), (False, True)]
    assert not broken.exists()


def test_what_fails_twice_is_said_and_files_elsewhere_stay(folder, tmp_path_factory, monkeypatch):
    mine = tmp_path_factory.mktemp("mine") / "c.so"
    mine.write_bytes(b"")

    def fail(*args, afresh=False, **options):
        raise ImportError(f"{mine}: file too short")

    monkeypatch.setattr(compiling, "machine_code_of", fail)
    said = compiling.machine_code(lift(lambda t: t + 1, X).graph, X)
    assert isinstance(said, Refusal)
    assert "file too short" in str(said)
    assert mine.exists()


KILLED = """
import os, signal, sys, threading, torch
from pyro_vae.graphs import compiling
from pyro_vae.graphs.lifting import lift
if len(sys.argv) > 1:
    os.setpgid(0, 0)  # the compiler dies as well
    threading.Timer(float(sys.argv[1]), os.killpg, (0, signal.SIGKILL)).start()
x = torch.linspace(0, 1, 50)
graph = lift(lambda t: (t.sin() + t.exp() * 3).cos(), x).graph
code = compiling.machine_code(graph, x)
print(type(code).__name__, torch.equal(code(x)[0], compiling.machine_code(graph, x)(x)[0]))
"""


@pytest.mark.slow
def test_kills_at_any_moment_of_a_compilation_do_no_harm(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def run(*after):
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", KILLED, *after],
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip

    for tenths in range(20, 60, 2):
        run(str(tenths / 10))
    last = run()
    assert last.returncode == 0, last.stderr[-500:]
    assert last.stdout.split()[1] == "True"
