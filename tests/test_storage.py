"""The files of a saved run: values come back, and no damaged file passes as whole."""

import errno
import functools
import json
import math
import os
from collections import Counter

import pytest
import safetensors.torch
import torch

import pyro_vae as pv
from pyro_vae.engine.learner import Learner
from pyro_vae.runs import storage, writer
from pyro_vae.training import checkpoint

from .saved_runs import (
    Counting,
    assert_same,
    fit,
    optim,
    small_vae,
)


def test_values_of_every_kind_come_back(tmp_path):
    """Weights of any dtype, views, empty tensors; and what JSON alone would change."""
    base = torch.arange(6.0).reshape(2, 3)
    kinds = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool",
             "complex64")  # fmt: skip
    content = {
        "tensors": {kind: base.to(getattr(torch, kind)) for kind in kinds},
        "views": [base.T, base[:, 1], torch.ones(()).expand(3), base, base],
        "small": (torch.tensor(2.5), torch.empty(0, 4)),
        "numbers": [1, True, None, 0.1, 1 / 3, 2**70, math.inf, -math.inf, "text"],
        "names": {0: {"step": torch.ones(())}, 1: ()},
        "$tensor": "no tensor",
        "counter": Counter({3: 2, 5: 1}),
        "betas": (0.9, (0.999, [])),
        "empty": {},
    }
    storage.write(tmp_path, content)
    found = storage.read(tmp_path)
    assert_same(found, content)
    assert_same(content, found)
    assert type(found["counter"]) is Counter and type(found["betas"]) is tuple
    assert found["numbers"][1] is True and math.isnan(math.nan)
    storage.write(tmp_path, {"nan": math.nan})
    assert math.isnan(storage.read(tmp_path)["nan"])
    assert len(list(tmp_path.iterdir())) == 3  # with the tensors of before, for who reads them
    storage.write(tmp_path, {"nan": math.nan, "a": torch.ones(1)})
    assert len(list(tmp_path.iterdir())) == 3
    json.loads((tmp_path / "checkpoint.json").read_text(), parse_constant=pytest.fail)


def test_what_cannot_be_saved_is_refused_before_the_first_step(tmp_path, monkeypatch):
    def schedule(optimizer):
        scheduler = optim.lr_scheduler.ConstantLR(optimizer)
        scheduler.odd = {1, 2}
        return scheduler

    monkeypatch.setattr(Learner, "require_finite", None)  # no step can be taken
    with pytest.raises(ValueError, match="scheduler/odd is a set, which a checkpoint cannot hold"):
        fit(out=tmp_path, schedule=schedule)
    with pytest.raises(ValueError, match="safetensors cannot hold"):
        storage.write(tmp_path, {"z": torch.zeros(1, dtype=torch.complex128)})


@pytest.mark.parametrize("function", ["open", "write", "fsync", "replace", "unlink"])
def test_a_crash_at_any_point_leaves_a_checkpoint_that_can_be_read(tmp_path, monkeypatch, function):
    """Each call that reaches the disk fails once: what is read is the old or the new, whole."""
    old, new = {"a": torch.zeros(3), "n": 1}, {"a": torch.ones(3), "n": 2}
    number, failed, outcomes = 0, True, []
    while failed:
        folder = tmp_path / str(number)
        folder.mkdir()
        storage.write(folder, old)
        calls, failed = [], False
        with monkeypatch.context() as patch:

            def failing(real, *args, number=number, calls=calls, **kwargs):
                calls.append(args)
                if len(calls) == number + 1:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(*args, **kwargs)

            if function == "open":
                patch.setattr(storage, "open", functools.partial(failing, open), raising=False)
            elif function == "write":
                patch.setattr(storage, "open", functools.partial(short, failing), raising=False)
            elif function == "unlink":
                method = functools.partial(failing, storage.Path.unlink)
                patch.setattr(storage.Path, "unlink", functools.partialmethod(method))
            else:
                patch.setattr(os, function, functools.partial(failing, getattr(os, function)))
            try:
                storage.write(folder, new)
            except OSError:
                failed = True
        found = storage.read(folder)
        assert_same(found, old if found["n"] == 1 else new)
        outcomes.append(found["n"])
        storage.tidy(folder)
        storage.write(folder, new)  # and the next save tidies up
        assert len(list(folder.iterdir())) <= 3
        number += 1
    attempts = {"open": 2, "write": 2, "fsync": 4, "replace": 2, "unlink": 2}[function]
    assert len(outcomes) == attempts + 1 and outcomes[-1] == 2
    assert outcomes[0] == 1


def short(failing, *args):
    """A file that is full after half of what is written to it."""
    file = open(*args)  # noqa: SIM115
    write = file.write

    def half(raw):
        write(raw[: len(raw) // 2])
        return failing(write, raw[len(raw) // 2 :])

    class Short:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            file.close()

        def __getattr__(self, name):
            return half if name == "write" else getattr(file, name)

    return Short()


def tensors_file(folder):
    return folder / json.loads((folder / "checkpoint.json").read_text())["tensors_file"]


def test_one_flipped_bit_in_any_tensor_is_found_by_name(tmp_path):
    """T26: torch loads such a file and says nothing."""
    fit(out=tmp_path, objective=Counting())
    path = tensors_file(tmp_path)
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8:start])
    assert {"parameters/likelihood.network.0.weight", "optimizer/state/0/sum", "state/rows/seen",
            "state/shared/total"} <= entries.keys()  # fmt: skip
    for name, entry in entries.items():
        damaged = bytearray(raw)
        first, end = entry["data_offsets"]
        damaged[start + (first + end) // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf'{path.name} tensor "{name}" differs from its sha'):
            pv.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.1, 0.7, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    fit(small_vae(hidden_dim=64), out=tmp_path)
    path = tensors_file(tmp_path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    named = 'it ends within tensor "[a-z]+/' if share > 0.4 else ""
    with pytest.raises(ValueError, match=rf"{path.name} has \d+ bytes, expected \d+: {named}"):
        pv.load(tmp_path)


def test_missing_and_foreign_tensors_and_wrong_shapes_are_named(tmp_path):
    fit(out=tmp_path)
    path, name = tensors_file(tmp_path), "parameters/likelihood.network.0.weight"
    raw = path.read_bytes()

    def changed(change):
        tensors = safetensors.torch.load(raw)
        change(tensors)
        path.write_bytes(safetensors.torch.save(tensors))
        with pytest.raises(ValueError) as refused:
            fit(out=tmp_path, resume=True)
        assert str(path) in str(refused.value)
        return str(refused.value)

    assert f'holds no tensor "{name}"' in changed(lambda t: t.pop(name))
    assert 'holds a tensor "more"' in changed(lambda t: t.update(more=torch.zeros(1)))
    wrong = changed(lambda t: t.update({name: t[name].T.contiguous()}))
    assert f'tensor "{name}" has shape [2, 8], expected [8, 2]' in wrong
    cast = changed(lambda t: t.update({name: t[name].view(torch.int32)}))
    assert f"tensor \"{name}\" holds int32, expected 'float32'" in cast
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path.name} is missing"):
        pv.load(tmp_path)


def test_an_edited_number_in_the_manifest_is_refused(tmp_path):
    fit(out=tmp_path)
    path = tmp_path / "checkpoint.json"
    text = path.read_text()
    for old, new in (('"seed": 3', '"seed": 4'), ('"lr": 0.02', '"lr": 0.03'),
                     ('"steps": 19', '"steps": 18')):  # fmt: skip
        assert text.count(old) >= 1
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=r"checkpoint.json differs from its own sha256"):
            pv.load(tmp_path)
    for broken in (text[: len(text) // 2], "", "[]", "{}", "\x00\xff"):
        path.write_text(broken, encoding="latin-1")
        with pytest.raises(ValueError, match=r"checkpoint.json is no whole JSON object"):
            pv.load(tmp_path)
    with pytest.raises(ValueError, match=r"holds no checkpoint.json: name a folder that"):
        pv.load(tmp_path / "nowhere")
    for other in (1, 99):  # format 1 counted its steps by other names
        path.write_text(text.replace('"format": 2', f'"format": {other}'))
        message = f"has format {other}, expected 2: read it with the version of pyro_vae that"
        with pytest.raises(ValueError, match=message):
            pv.load(tmp_path)


def test_saves_come_when_they_are_asked_for(tmp_path, monkeypatch):
    """Whole numbers count steps, floats seconds; by default a short run saves at its end alone."""
    steps, write = [], writer.write

    def counted(folder, content):
        steps.append(content["progress"]["steps"])
        write(folder, content)

    monkeypatch.setattr(writer, "write", counted)
    fit(out=tmp_path / "default")
    assert steps == [19]
    fit(out=tmp_path / "steps", checkpoint_every=8)
    assert steps[1:] == [8, 16, 19]
    fit(out=tmp_path / "seconds", checkpoint_every=1e-9, steps=3)
    assert steps[4:] == [1, 2, 3, 3]
    now = [0.0]

    def ticking():
        now[0] += 1
        return now[0]

    monkeypatch.setattr(checkpoint.time, "monotonic", ticking)
    fit(out=tmp_path / "minute", steps=130, progress=False)
    assert len(steps[8:]) == 3  # about every 60 looks at a clock that ticks once a look


def test_a_number_that_was_expanded_has_a_digest():
    """Of one entry a step of 0 bytes counts as contiguous, and has no bytes to view."""
    expanded = torch.tensor(1.5).expand(1)
    assert storage.tensor_digest("x", expanded) == storage.tensor_digest("x", torch.tensor([1.5]))
