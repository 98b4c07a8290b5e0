"""Arguments that a constructor hands on to its base: their types and their words."""

import inspect

import pytest

from pyro_vae.cli.flags import explained, kind_of
from pyro_vae.recording.forms import KIND
from pyro_vae.recording.listing import PARTS, classes_in, rebuilt
from pyro_vae.recording.signatures import kinds_of


def test_every_argument_of_every_part_has_its_type_and_its_words():
    """A type that stays text is one that nothing checks, and no flag."""
    for folder in PARTS:
        for name, cls in classes_in(folder).items():
            kinds, words = kinds_of(cls), explained(cls)
            for each, option in inspect.signature(cls).parameters.items():
                assert not isinstance(option.annotation, str), f"{name}.{each}"
                assert not isinstance(kinds[each], str) and each in words, f"{name}.{each}"


def test_an_inherited_argument_of_a_saved_part_has_its_own_type():
    form = {KIND: "made", "class": "pyro_vae.likelihoods.bernoulli.Bernoulli", "defaults": []}
    sizes = {"latent_dim": 2, "data_dim": 3}
    made = rebuilt({**form, "arguments": {**sizes, "hidden_dim": 4}}, "likelihood")
    assert made.network[0].out_features == 4
    with pytest.raises(ValueError, match="hidden_dim is 'x', expected int"):
        rebuilt({**form, "arguments": {**sizes, "hidden_dim": "x"}}, "likelihood")


def test_lists_of_numbers_are_plain():
    networks, priors = classes_in("networks"), classes_in("priors")
    assert kind_of(networks["MLP"], "hidden") is not None
    assert kind_of(priors["VampPrior"], "bounds") is not None
    assert kind_of(networks["Embedding"], "network") is None
