"""Checkpoints that somebody has damaged or written by hand: refused in one line, at once."""

import json
import os
import resource
import subprocess
import sys
import time

import pytest
import torch

import pyro_vae as pv
from pyro_vae.runs import storage

from .saved_runs import fit, small_vae


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    fit(out=folder, steps=4, optimizer=torch.optim.Adam, lr=0.01,
        schedule=lambda o: torch.optim.lr_scheduler.StepLR(o, 2))  # fmt: skip
    return folder


@pytest.fixture
def saved(original, tmp_path):
    for path in original.glob("[ct]*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def resume(folder):
    fit(small_vae(), out=folder, steps=8, resume=True, optimizer=torch.optim.Adam, lr=0.01,
        schedule=lambda o: torch.optim.lr_scheduler.StepLR(o, 2))  # fmt: skip


def refused(folder, *, both=True):
    """Loading and going on are refused in one line each, quickly, and with little memory."""
    lines = []
    for use in (pv.load, resume)[: 1 + both]:
        started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ValueError) as raised:
            use(folder)
        lines.append(str(raised.value))
        assert "\n" not in lines[-1] and len(lines[-1]) < 1000 and str(folder) in lines[-1]
        assert time.process_time() - started < 5
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    return lines


def forged(folder, path, value):
    """The same checkpoint with another value at a path, and a right digest."""
    body = json.loads((folder / "checkpoint.json").read_text())
    body.pop("sha256")
    *above, last = path
    place = body
    for name in above:
        place = place[name]
    place[last] = value
    body["sha256"] = storage._digest(body)
    (folder / "checkpoint.json").write_text(json.dumps(body))


M = "manifest"
VALUES = [
    ((M, "num_data"), 0), ((M, "num_data"), "50"), ((M, "batch_size"), -1), ((M, "dtype"), "nn"),
    ((M, "dtype"), "int64"), ((M, "steps"), 5), ((M, "steps"), 2**70), ((M, "steps"), True),
    ((M, "samples"), 1.5), ((M, "seconds"), {"$float": "nan"}), ((M, "seconds"), {"$float": "1e"}),
    ((M, "versions"), {}), ((M, "versions"), None), ((M, "parts"), [1]), ((M, "row"), 3),
    ((M, "parts"), {"program": {"!": "made"}}), ((M, "row"), {"dtype": "float32", "shape": [-1]}),
    ((M, "objective_record"), {"!": "made", "class": 1}), ((M, "weight_prior"), {"$float": "inf"}),
    ((M, "program"), None), ((M, "keep"), "worst"), ((M, "optimizer_options"), []), ((M,), 7),
    (("parameters",), []), (("parameters", "likelihood.network.0.bias"), 1.0),
    (("buffers",), {"more": {"$tensor": "nowhere"}}), (("state",), {"rows": {}}),
    (("state", "shared"), {"a": 3}), (("history", "records"), {"step": 1}),
    (("history", "records"), [{"step": "1"}]), (("history", "sums"), [1]), (("build",), "vae"),
    (("build", "model"), 3), (("progress", "steps"), -1), (("progress", "steps"), "4"),
    (("progress", "batches"), {"$float": "inf"}), (("progress", "best"), 3.0), (("progress",), []),
    (("optimizer", "state"), {"0": {}}), (("optimizer", "param_groups"), 3),
    (("optimizer", "param_groups", 0, "params"), "all"), (("scheduler",), [1]),
    (("optimizer", "param_groups", 0, "lr"), {"$float": "nan"}), (("tensors_file",), "../x"),
    (("tensors_file",), ["x"]), (("tensors",), []), (("bytes",), "many"), (("bytes",), 1e9),
    (("tensors", "optimizer/state/0/step"), 3), (("format",), [2]), (("format",), None),
    (("parameters",), {"$dict": [[[1], 2]]}), (("parameters",), {"$dict": 3}),
    (("parameters",), {"$counter": [[1]]}), (("parameters",), {"$tuple": 5}),
    (("build", "options", "hidden_dim"), 10**9), (("build", "options", "latent_dim"), 10**9),
    (("build", "options", "hidden_dim"), "8"), (("build", "options"), None),
    (("build", "options", "hidden_dim"), {"$float": "nan"}),
    (("history", "records", 1, "step"), 10**9), (("history", "records", 1, "samples"), -1),
    (("history", "records", 1, "seconds"), -1.0), (("history", "records", 0, "step"), 0),
    (("tensors", "parameters/likelihood.network.0.bias", "dtype"), "float64"),
]  # fmt: skip
ONLY_LOADED = [path for path, _ in VALUES if path[:2] == ("build", "options")]


@pytest.mark.parametrize(("path", "value"), VALUES, ids=lambda v: str(v)[:50])
def test_a_forged_value_is_refused(saved, path, value):
    forged(saved, path, value)
    refused(saved, both=path not in ONLY_LOADED)


OTHERS = [
    (("scheduler", "step"), 5), (("scheduler", "optimizer"), 5), (("scheduler",), None),
    (("optimizer", "param_groups", 0, "betas"), 0.9), (("optimizer", "param_groups"), []),
    (("optimizer", "param_groups", 0, "params"), [0]), (("state", "shared"), {}),
    (("optimizer", "param_groups", 0, "betas", "$tuple", 1), None),
    (("optimizer", "state", "$dict", 0, 1), {}), (("optimizer", "state", "$dict", 0, 1, "step"), 9),
    (("optimizer", "state", "$dict", 0, 1), {"exp_avg": 1.0}),
    (("optimizer", "param_groups", 0, "more"), 1),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), OTHERS[:6] + OTHERS[7:], ids=lambda v: str(v)[:50])
def test_a_forged_state_of_optimizer_or_schedule_is_refused(saved, path, value):
    forged(saved, path, value)
    with pytest.raises(ValueError) as raised:
        resume(saved)
    assert "\n" not in str(raised.value)


def manifest(folder, text):
    (folder / "checkpoint.json").write_text(text)


def many_tensors(folder):
    entry = '{"dtype": "float32", "shape": [1], "sha256": "' + "0" * 64 + '"}'
    names = ",".join(f'"t{i}": {entry}' for i in range(10**6))
    manifest(folder, '{"format": 2, "tensors": {' + names + "}}")


def tensors_of(folder):
    return folder / json.loads((folder / "checkpoint.json").read_text())["tensors_file"]


def many_tensors_in_the_file(folder):
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = ("{" + ",".join(f'"t{i}":{entry}' for i in range(100_000)) + "}").encode()
    raw = len(header).to_bytes(8, "little") + header + b"\0" * 4
    tensors_of(folder).write_bytes(raw)
    forged(folder, ("bytes",), len(raw))


def sparse(folder):
    with open(tensors_of(folder), "r+b") as file:
        file.truncate(10**11)


def instead(folder, what, make):
    path = tensors_of(folder) if what == "tensors" else folder / "checkpoint.json"
    path.unlink()
    make(path)


FILES = {
    "deep lists": lambda f: manifest(f, "[" * 10**6),
    "deep dicts": lambda f: manifest(f, '{"a":' * 900 + "1" + "}" * 900),
    "a tall value": lambda f: forged(f, ("more",), json.loads("[" * 80 + "]" * 80)),
    "nan": lambda f: manifest(f, '{"format": NaN}'),
    "a long number": lambda f: manifest(f, '{"format": ' + "9" * 10**6 + "}"),
    "many values": lambda f: manifest(f, "[" + "[],[]," * 3_000_000 + "[]]"),
    "a long text": lambda f: manifest(f, '{"a": "' + "x" * 60_000_000 + '"}'),
    "a million tensors": many_tensors,
    "many tensors in the file": many_tensors_in_the_file,
    "a sparse file": sparse,
    "a list": lambda f: manifest(f, "[1, 2]"),
    "a surrogate": lambda f: manifest(f, '{"sha256": "\\ud800"}'),
    "zeros": lambda f: (f / "checkpoint.json").write_bytes(b"\0" * 100),
    **{
        f"{kind} for the {what}": lambda f, w=what, m=make: instead(f, w, m)
        for what in ("manifest", "tensors")
        for kind, make in {
            "a pipe": os.mkfifo,
            "a folder": os.mkdir,
            "/dev/zero": lambda p: p.symlink_to("/dev/zero"),
            "a link to itself": lambda p: p.symlink_to(p),
            "a terminal": lambda p: p.symlink_to("/dev/tty"),
        }.items()
    },
}


@pytest.mark.parametrize("name", FILES)
def test_a_forged_file_is_refused(saved, name):
    FILES[name](saved)
    refused(saved)


@pytest.mark.parametrize("step", [997, pytest.param(41, marks=pytest.mark.slow)])
def test_any_flipped_byte_and_any_truncation_is_refused(saved, step):
    for path in (saved / "checkpoint.json", tensors_of(saved)):
        raw = path.read_bytes()
        for place in range(step // 2, len(raw), step):
            flipped = raw[:place] + bytes([raw[place] ^ 0x15]) + raw[place + 1 :]
            for damaged in (flipped, raw[:place]):
                path.write_bytes(damaged)
                with pytest.raises(ValueError, match=path.name) as raised:
                    pv.load(saved)
                assert "\n" not in str(raised.value)
        path.write_bytes(raw)
    assert pv.load(saved).manifest["steps"] == 4


@pytest.mark.slow
def test_as_a_process_with_little_memory(saved):
    """10^9 units in a process of its own, whose peak is that of an import and 200 MB."""
    code = (
        "import resource, sys, pyro_vae as pv\n"
        "from pyro_vae.models import bernoulli_vae\nbernoulli_vae.build(6, latent_dim=2)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nbefore = peak()\n"
        "try:\n    pv.load(sys.argv[1])\nexcept ValueError as error:\n    print(error)\n"
        "print(peak() - before)\n"
    )
    forged(saved, ("build", "options", "hidden_dim"), 10**9)
    out = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True)
    line, grown = out.stdout.splitlines()
    assert "more than the file holds" in line and int(grown) < 200 * 1024
