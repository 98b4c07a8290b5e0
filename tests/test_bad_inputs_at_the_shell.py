"""Configurations, model files and options that are hostile: each is refused in a line."""

import ast
import itertools
import os
from pathlib import Path

import pytest

import pyro_vae
from tests.hostile import place, refusal

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes")

FIT = ["fit", "bernoulli_vae", "--model.hidden_dim", "4", "--config", "c.yaml"]
LAUGHS = "a: &a [x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in itertools.pairwise("abcdefghi")
)
CONFIGS = {
    "laughs": (LAUGHS, "*a repeats a value"),
    "itself": ("model: &a\n  x: *a\n", "*a repeats"),
    "merged": ("a: &a {x: 1}\nb:\n  <<: *a\n", "*a repeats"),
    "lists": ("lr: " + "[" * 5000 + "]" * 5000, "nested more than 8 deep"),
    "dicts": ("{a: " * 5000 + "}" * 5000, "nested more than 8 deep"),
    "dashes": ("- " * 3000 + "x", "nested more than 8 deep"),
    "questions": ("? " * 5000, "nested more than 8 deep"),
    "long": ("x: " + "y" * 70_000, "more than 65,536 bytes"),
    "code": ("lr: !!python/object/apply:os.system ['touch owned']\n", "could not determine"),
    "name": ("lr: !!python/name:os.system\n", "could not determine"),
    "bytes": ("lr: !!binary aGVsbG8=\n", "--lr is"),
    "set": ("lr: !!set {a, b}\n", "--lr is"),
    "date": ("lr: 2020-01-01\n", "--lr is"),
    "no date": ("lr: 2020-13-45\n", "month must be in 1..12"),
    "digits": ("steps: " + "9" * 10_000 + "\n", "Exceeds the limit"),
    "infinite": ("steps: 1\nlr: .inf\n", "--lr is"),
    "nan": ("steps: 1\nlr: .nan\n", "--lr is"),
    "truth": ("steps: true\n", "--steps is 'true'"),
    "fraction": ("steps: 2.5\n", "--steps is '2.5'"),
    "negative": ("steps: -3\n", "--steps is -3"),
    "list": ("lr: [1, 2]\n", "--lr is"),
    "dict": ("lr: {a: 1}\n", '"--lr.a"'),
    "twice": ("lr: 0.1\nlr: 0.2\n", "c.yaml:2: 'lr' stands there twice"),
    "twice inside": ("model: {latent_dim: 2, latent_dim: 3}\n", "twice"),
    "two ways": ("model.latent_dim: 2\nmodel: {latent_dim: 3}\n", "said twice"),
    "two spellings": ("batch-size: 3\nbatch_size: 4\n", "said twice"),
    "no key": ("null: 3\n", '"--None"'),
    "list as key": ("? [a, b]\n: 3\n", "unhashable"),
    "another": ("config: other.yaml\n", "one file holds all"),
    "nothing": ("", "holds no options"),
    "words": ("just words\n", "holds no options"),
    "documents": ("lr: 1\n---\nlr: 2\n", "another document"),
    "tab": ("\tlr: 1\n", "c.yaml:1"),
    "unclosed": ("lr: [1\n", "c.yaml:2"),
    "null": (b"lr: \0\n", "no text in UTF-8"),
    "utf-16": ("lr: 1\n".encode("utf-16"), "no text in UTF-8"),
    "bytes of all": (bytes(range(256)), "no text in UTF-8"),
    "signs": ('"\\x1b[2J": 1\n', "--\\x1b[2J"),
    "null in a path": ('out: "x\\0"\n', "--out is"),
    "empty path": ("out: ''\n", "--out is '', expected a path"),
    "many": ("".join(f"a{i}: 1\n" for i in range(5000)), '"--a0"'),
    "part": ("model: {prior: {scale: 3}}\n", "option of a prior"),
    "parts": ("model: {prior: [Laplace, Nope]}\n", "2 times"),
    "pipe": ("FIFO", "is a pipe"),
    "folder": ("FOLDER", "is a directory"),
    "loop": ("LOOP", "symbolic links"),
    "zeros": ("-> /dev/zero", "is a device"),
    "gone": ("-> nowhere", "no such file"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_configuration_is_refused(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, said = CONFIGS[name]
    place(tmp_path, "c.yaml", content)
    assert said in refusal(FIT, tmp_path, capsys)


# --- model files --------------------------------------------------------------------------------

HEAD = "import os, sys, torch, pyro, pyro.distributions as dist\nimport pyro_vae as pv\n"
MINE = """
class Mine(pv.Program):
    def __init__(self, data_dim):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(data_dim) + 0.1)
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z * self.weight).to_event(1), obs=x)
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

def build(data_dim):
    return Mine(data_dim)
"""


def build(line):
    return f"{HEAD}def build(data_dim):\n    {line}\n"


def model(line):
    start = "    def model(self, x):\n"
    return HEAD + MINE.replace(start, f"{start}        {line}\n")


MODELS = {
    "nothing": ("", "has no function build"),
    "syntax": ("def build(:\n", "mine.py:1: invalid syntax"),
    "null": (b"x = 1\0\n", "null bytes"),
    "coding": (b"# -*- coding: foo -*-\n", "foo"),
    "latin": (b"x = '\xff'\n", "utf-8"),
    "brackets": ("(" * 5000, "mine.py:1"),
    "minus": ("x = " + "-" * 100_000 + "1\n", "mine.py"),
    "long": (lambda: b"#" * (5 << 20), "more than 4,194,304 bytes"),
    "exits": ("import sys\nsys.exit(3)\n", "mine.py:2: sys.exit(3), at import"),
    "exits well": ("raise SystemExit\n", "mine.py:1: sys.exit(None)"),
    "base": ("class E(BaseException): ...\nraise E('a\\nb')\n", "mine.py:2: E: a b, at import"),
    "generator": ("raise GeneratorExit\n", "mine.py:1: GeneratorExit, at import"),
    "recursion": ("def f(): f()\nf()\n", "RecursionError"),
    "memory": ("raise MemoryError\n", "out of memory"),
    "mute": ("class E(Exception):\n    def __str__(self): 1 / 0\nraise E\n", "mine.py:3: E, at"),
    "loud": ("raise ValueError('x' * 10**6)\n", "xxx ... xxx"),
    "signs": ("raise ValueError('\\x1b[2J\\x07')\n", "\\x1b[2J\\x07"),
    "import": ("import tensorfloat\n", "mine.py:1: ModuleNotFoundError"),
    "warns": ("import warnings\nwarnings.simplefilter('error')\nwarnings.warn('w')\n", "mine.py:3"),
    "getattr": ("def __getattr__(name): raise RuntimeError\n", 'unknown "build"'),
    "number": ("build = 3\n", "has no function build"),
    "no arguments": ("build = lambda: None\n", "build returned NoneType"),
    "async": ("async def build(data_dim): ...\n", "build returned coroutine"),
    "yields": ("def build(data_dim): yield 1\n", "build returned generator"),
    "annotation": ("def build(d, *, x: 'os.system(\"touch owned\")' = 1): ...\n", "NoneType"),
    "device": (HEAD + "torch.set_default_device('meta')\n" + MINE, "default device to meta"),
    "returns none": (build("return None"), "build returned NoneType"),
    "returns a class": (build("return Mine"), "mine.py:4: NameError"),
    "raises": (build("raise RuntimeError('no\\nway')"), "mine.py:4: RuntimeError: no way"),
    "leaves": (build("sys.exit(1)"), "mine.py:4: sys.exit(1)"),
    "base in build": (build("raise BaseException('x')"), "mine.py:4: BaseException: x"),
    "endless": (build("return build(data_dim)"), "RecursionError"),
    "petabyte": (build("return torch.zeros(10**15)"), "out of memory"),
    "a petabyte of a list": (build("return [0] * 10**14"), "out of memory"),
    "model raises": (model("raise RuntimeError('x\\ny')"), "mine.py:9"),
    "model leaves": (model("sys.exit(0)"), "mine.py:9: sys.exit(0)"),
    "model lacks": (model("{}['k']"), "mine.py:9"),
    "model's memory": (model("torch.zeros(10**15)"), "mine.py:9"),
    "pipe": ("FIFO", "is a pipe"),
    "folder": ("FOLDER", "is a directory"),
    "loop": ("LOOP", "symbolic links"),
    "random": ("-> /dev/urandom", "is a device"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_hostile_model_file_is_refused(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, said = MODELS[name]
    place(tmp_path, "mine.py", content)
    assert said in refusal(["fit", "mine.py", "--steps", "1"], tmp_path, capsys)


# --- options ------------------------------------------------------------------------------------

SMALL = "fit bernoulli_vae --model.hidden_dim 4 --steps 1"
OPTIONS = {
    f"{SMALL} --batch_size 1e400": "--batch_size is",
    f"{SMALL} --lr=": "--lr is ''",
    f"{SMALL} --lr nan": "--lr is 'nan'",
    f"{SMALL} --lr -inf": "--lr is",
    f"{SMALL} --clip -1": "clip is -1",
    f"{SMALL} --seed 99999999999999999999": "seed is",
    f"{SMALL} --weight_prior -1": "weight_prior is -1",
    f"{SMALL} --scale 0": "--scale is 0",
    f"{SMALL} --early_stopping 0": "--early_stopping is 0",
    f"{SMALL} --evaluate_every -1": "evaluate_every is -1",
    f"{SMALL} --checkpoint_every nan": "--checkpoint_every is",
    f"{SMALL} --keep worst": "--keep is 'worst'",
    f"{SMALL} --device quantum": "--device quantum",
    f"{SMALL} --device meta": "--device meta",
    f"{SMALL} --engine ü": "ü",
    f"{SMALL} --out=": "--out is ''",
    f"{SMALL} --out file/run": "--out file/run",
    f"{SMALL} --out file": "--out file",
    f"{SMALL} --track=": "--track is ''",
    f"{SMALL} --model.latent_dim 1e15": "out of memory",
    f"{SMALL} --model.hidden_dim 1e11": "out of memory",
    f"{SMALL} --model.latent_dim None": "--model.latent_dim is 'None'",
    f"{SMALL} --model.prior file:Class": "file: is a nameless file",
    f"{SMALL} --model.prior ~nobody_at_all/x.py": "home directory",
    f"{SMALL} --resume": "--resume needs a folder",
    f"{SMALL} --key x": "--key is for files of your own",
    "fit": "which model?",
    "fit mine.py:build:build --steps 1": "no such file",
    "fit ~nobody_at_all/mine.py --steps 1": "home directory",
    "fit file --steps 1": 'unknown "file"',
    "fit ./file --steps 1": "is a nameless file",
    "fit http://x.org/y.py --steps 1": "no such file",
    "fät": 'unknown "fät"',
    "--": 'unknown "--"',
    "evidence folder": "holds no checkpoint.json",
    "evidence linear_gaussian --num_data 0": "--num_data is 0",
    "evidence linear_gaussian --num_particles -1": "num_particles is -1",
    "evidence linear_gaussian --method magic": "--method is 'magic'",
    "evidence linear_gaussian --out file": "--out file",
    "diagnose folder": "holds no checkpoint.json",
    "diagnose linear_gaussian --level 2": "level is 2",
    "posterior linear_gaussian": "where to?",
    "posterior linear_gaussian --out p.txt": "p.txt",
    "posterior folder --out p.nc": "holds no checkpoint.json",
    "report folder": "holds neither checkpoint.json",
    "compare --seeds 0": "seeds is 0",
    "compare --objectives ü": 'unknown "ü"',
    "compare --out file": "--out file",
    "reproduce": "which figure?",
    "reproduce figure_99": 'did you mean "figure',
    "reproduce figure2 --budget -1": "budget is -1",
    "parts nothing": 'unknown "nothing"',
    "data get": "needs the name",
    "data get ../../etc": "expected one of",
    "data remove mnist": 'unknown "remove"',
    "data list digits": "list takes no name",
}


@pytest.mark.parametrize("line", OPTIONS)
def test_a_wrong_option_is_refused(line, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place(tmp_path, "file", "no folder")
    place(tmp_path, "folder", "FOLDER")
    assert OPTIONS[line] in refusal(line.split(" "), tmp_path, capsys)


def test_no_check_of_the_library_goes_with_python_o():
    """-O takes out every assert, and what stands under __debug__."""
    found = []
    for path in Path(pyro_vae.__file__).parent.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        asks = [
            n for n in nodes if isinstance(n, ast.Assert) or getattr(n, "id", "") == "__debug__"
        ]
        found += [(path.name, node.lineno) for node in asks]
    assert not found


def _is_debug(node):
    return isinstance(node, ast.Name) and node.id == "__debug__"
