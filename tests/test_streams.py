"""Noise has a purpose: two of them share none, whatever their seeds."""

import ast
import itertools
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae import noise
from pyro_vae.chains import sample_posterior
from pyro_vae.models import linear_gaussian
from pyro_vae.noise import Noise, Stream, keyed, seed_of
from pyro_vae.objectives import AEVB, MonteCarloEM, ScoreFunction

SEED = 11
X = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))


def build():
    return linear_gaussian.build(3, latent_dim=2)


def compare(program):
    data = pv.datasets.split(pv.datasets.from_array(X))
    return pv.compare(
        data, builds={"linear": build}, objectives=[AEVB()], seeds=1, samples=30,
        proposal="guide", num_particles=20, progress=False,
    )  # fmt: skip


MANY = {"num_draws": 60, "warmup": 20, "leapfrog_steps": 2, "seed": SEED}
GUIDE = {"num_particles": 20, "seed": SEED}
VERBS = {
    "fit": (
        lambda p: pv.fit(p, X, MonteCarloEM(2), steps=6, seed=SEED, engine="pyro"),
        {"INIT", "BATCHES", "TRAIN", "REFRESH"},
    ),
    "elbo": (lambda p: pv.elbo(p, X, seed=SEED, batch_size=9), {"BOUND"}),
    "importance": (lambda p: pv.log_evidence(p, X, batch_size=9, **GUIDE), {"EVIDENCE"}),
    "hmc": (
        lambda p: pv.log_evidence(p, X[:4], proposal="hmc", num_particles=20, **MANY),
        {"PIECES", "START", "CANDIDATES", "CHAINS", "PILOT", "PROPOSAL", "DEFENSIVE"},
    ),
    "reciprocal": (
        lambda p: pv.log_evidence(p, X[:4], method="reciprocal", **MANY),
        {"PIECES", "START", "CANDIDATES", "CHAINS", "PILOT", "PROPOSAL", "DEFENSIVE"},
    ),
    "sample_posterior": (lambda p: sample_posterior(p, X[:4], **MANY), {"START", "CHAINS"}),
    "gradient_report": (
        lambda p: pv.gradient_report(
            p, X, [AEVB(), ScoreFunction()], num_draws=50, warmup=2, seed=SEED, progress=False
        ),
        {
            "LABORATORY", "LABORATORY_INIT", "LABORATORY_WARMUP", "LABORATORY_TIMING"
        },
    ),
    "to_inference_data": (
        lambda p: pv.to_inference_data(p, X, num_draws=10, chains=2, num_prior=10, seed=SEED),
        {"POSTERIOR", "PRIOR", "KL_TERMS"},
    ),
    "summarize": (lambda p: pv.summarize(p, X, num_draws=10, seed=SEED), {"SUMMARY"}),
    "sample": (lambda p: pv.sample(p, 3, like=X, seed=SEED), {"PREDICTIVE", "SHARED"}),
    "encode": (lambda p: pv.encode(p, X, num_draws=3, seed=SEED), {"LATENTS"}),
    "compare": (compare, {"PARAMETERS", "INIT", "BATCHES", "TRAIN", "EVIDENCE", "BOUND"}),
}  # fmt: skip
NO_RESULT = {"LOOK", "CREATED"}  # linear_gaussian creates no parameter


@pytest.fixture
def keys_of(monkeypatch):
    """What a verb asks noise for, by its name."""
    packed, keys = noise._packed, []

    def spy(key):
        keys.append(key)
        return packed(key)

    monkeypatch.setattr(noise, "_packed", spy)

    def run(name):
        torch.manual_seed(0)
        program = build()
        keys.clear()
        VERBS[name][0](program)
        return set(keys)

    return run


@pytest.mark.filterwarnings("ignore::pyro_vae.errors.PyroVaeWarning")
@pytest.mark.parametrize("name", VERBS)
def test_a_verb_draws_from_its_own_streams(name, keys_of):
    """And every key is (stream, seed, rank, numbers ...)."""
    found = keys_of(name)
    assert all(isinstance(key[0], Stream) and key[2] == 0 for key in found)
    named = {key for key in found if key[0].name not in NO_RESULT}
    assert {key[0].name for key in named} == VERBS[name][1]
    if name != "compare":  # its seeds count from 0
        assert {key[1] for key in named if not (name in CHAINED and key[0] in MOVES)} == {SEED}


CHAINED = ("hmc", "reciprocal")
MOVES = (Stream.START, Stream.CANDIDATES, Stream.CHAINS)


def test_no_two_verbs_share_a_stream():
    """But for those that stand on chains; and ``compare``, which trains and scores."""
    for one, other in itertools.combinations(VERBS.keys() - {"compare"}, 2):
        shared = VERBS[one][1] & VERBS[other][1]
        assert not shared or {one, other} <= {*CHAINED, "sample_posterior"}, (one, other)


@pytest.mark.filterwarnings("ignore::pyro_vae.errors.PyroVaeWarning")
def test_chains_behind_log_evidence_are_not_those_of_sample_posterior(keys_of):
    """They have seeds of their own, by chunk of rows; the two estimates stand on the same ones."""
    own, others = keys_of("sample_posterior"), keys_of("hmc")
    shared = {key for key in own & others if key[0].name not in NO_RESULT}
    assert not shared
    seeds = {key[1] for key in others if key[0] == Stream.CHAINS}
    assert seeds == {seed_of(*Stream.PIECES.key(SEED, 0)) >> 1}


def test_no_key_begins_another():
    """With the number of a draw behind it or without, in a stream or of plain numbers."""
    numbers = [key for n in range(4) for key in itertools.product((0, 1, 2), repeat=n)]
    streams = (Stream.LOOK, Stream.PARAMETERS)
    keys = numbers + [(stream, *key) for stream in streams for key in numbers]
    packed = [noise._packed(key) for key in keys]
    drawn = [p + i.to_bytes(8, "little") for p in packed for i in range(3)]
    # (OWN, ...) is what plain numbers become; nothing else is said twice.
    assert len({*packed, *drawn}) == len(packed) + len(drawn)
    assert noise._packed((3, 4)) == noise._packed((Stream.OWN, 3, 4))


def test_ranks_and_streams_draw_other_numbers():
    asked = Noise("normal", (4,), torch.float64, torch.device("cpu"))
    keys = [
        Stream.TRAIN.key(0, 1), Stream.TRAIN.key(0, 1, rank=1), Stream.TRAIN.key(1, 0),
        Stream.LABORATORY.key(0, 1), (int(Stream.TRAIN), 0, 0, 1),
    ]  # fmt: skip
    draws = [keyed(*key)(index, asked) for key in keys for index in range(2)]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(draws)
    assert torch.equal(draws[0], keyed(*keys[0])(0, asked))


def test_no_file_of_the_package_makes_up_a_key():
    """A key is spelt ``*Stream.X.key(...)`` or handed on as ``*key``: never plain numbers."""
    calls = 0
    for path in Path(pv.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node.func, "id", None) if isinstance(node, ast.Call) else None
            if name in ("keyed", "seeded", "seed_of"):
                calls += 1
                assert isinstance(node.args[0], ast.Starred), f"{path}:{node.lineno}"
    assert calls > 30
