"""Mistakes of structure that `check` knows, each in the smallest program that makes it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.checking.report import check

from .checks import Linear, Plated, mistake, mistakes


def test_a_site_of_a_datum_outside_the_plate_is_named(real):
    """Without the plate the rows are one datum, and every per-datum number is wrong."""

    class NoPlate(Linear):
        def model(self, x):
            z = pyro.sample("z", self.prior().expand([len(x)]))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))

    lines = mistakes(NoPlate(), real)

    assert [line.split(":")[0] for line in lines] == [
        'site "z" of the guide',
        'site "x" of the model',
    ]
    assert lines[0].endswith('(likewise site "z" of the model)')
    for line in lines:
        assert 'batch shape (8,) outside pyro.plate("data", ...)' in line
        assert 'indent the statement under `with pyro.plate("data", len(x)):`' in line


def test_a_loop_over_the_plate_is_refused(real):
    """Pyro allows it; a batch is one call here."""

    class Loop(Linear):
        def model(self, x):
            for i in pyro.plate("data", len(x)):
                z = pyro.sample(f"z{i}", self.prior())
                pyro.sample(f"x{i}", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x[i])

        def guide(self, x):
            for i in pyro.plate("data", len(x)):
                pyro.sample(f"z{i}", dist.Normal(self.encoder(x[i]), 1.0).to_event(1))

    lines = mistakes(Loop(), real[:2])

    assert 'site "z0" of the guide: pyro.plate("data", ...) is a for loop' in lines[0]


def test_a_latent_on_one_side_of_the_plate_only_is_named(real):
    """A latent belongs to a datum or to all of them."""

    class OneSided(Linear):
        def model(self, x):
            pyro.sample("w", dist.Normal(0.0, 1.0))
            super().model(x)

        def more_in_guide(self, x):
            pyro.sample("w", dist.Normal(0.0, 1.0))

    line = mistake(OneSided(), real)

    assert line.startswith('site "w": inside pyro.plate("data", ...) in the guide and outside in')


@pytest.mark.parametrize("rows", [8, 2])
def test_a_forgotten_to_event_is_found_at_any_number_of_rows(rows):
    """Where B equals J, Pyro's own plate takes the latents for rows."""

    class NoEvent(Linear):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.encoder(x), 1.0))

    line = mistakes(NoEvent(), torch.randn(rows, 3))[0]

    assert "z" in line
    assert ".to_event(n)" in line


def test_a_latent_missing_in_the_guide_is_named(real):
    """Pyro warns and draws it from the prior (T16)."""

    class Forgetful(Linear):
        def more_in_model(self, x):
            pyro.sample("w", dist.Normal(0.0, 1.0))

    line = mistake(Forgetful(), real)

    assert line.startswith('site "w" of the model: missing in the guide')
    assert 'add pyro.sample("w", ...) to the guide' in line


@pytest.mark.parametrize("infer", [{}, {"is_auxiliary": True}])
def test_a_latent_missing_in_the_model_is_named(real, infer):
    """It would add its entropy to the bound, whatever it is called, beside latents with a law."""

    class Inventive(Linear):
        def more_in_guide(self, x):
            pyro.sample("w", dist.Normal(0.0, 1.0), infer=infer)

    line = mistake(Inventive(), real)

    assert line.startswith('site "w" of the guide: missing in the model')
    assert 'infer={"is_auxiliary": True}' in line


def test_an_observation_that_would_broadcast_is_refused():
    """(B, 1) is scored against D = 3 pixels, validation on (T14)."""
    program = Linear(encoder=nn.Linear(1, 2))

    line = mistake(program, torch.randn(8, 1))

    assert line.startswith('site "x" of the model: observed shape (8, 1), expected (8, 3)')
    assert "batch (8,) + event (3,)" in line


def test_a_guide_of_another_event_shape_is_found_before_the_decoder_fails(real):
    """The decoder's complaint about matrices is a consequence."""

    class Wider(Linear):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))

    lines = mistakes(Wider(), real)

    assert lines[0].startswith(
        'site "z" of the model: the guide draws shape (8, 5), expected (8, 2)'
    )
    assert lines[1].startswith("model(x) fails on a batch of shape (8, 3): RuntimeError")


def test_an_observed_value_that_is_not_x_is_noted_and_no_sleep_phase_dreams_it(real):
    """A dream of it is no dream of x, so a sleep phase would be silently wrong (T34)."""

    class Transformed(Linear):
        def model(self, x):
            super().model(x.exp())

    (note,) = check(Transformed(), real).notes

    assert note.startswith('"x" observes something computed from x')
    assert "WakeSleep cannot dream" in note
    with pytest.raises(ValueError, match="takes a function of x"):
        pv.fit(Transformed(), real, pv.objectives.WakeSleep(), steps=1, progress=False)


def test_a_model_without_observation_is_refused(real):
    """With obs=None the site is a latent, and nothing is learnt from the data."""

    class Blind(Linear):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1))

    line = mistake(Blind(), real)

    assert line.startswith('site "x" of the model: a latent, expected an observed site')
    assert 'pass obs=x to pyro.sample("x", ...)' in line


def test_a_second_observed_site_is_noted(real):
    """It is scored with the first; draws and reconstructions are of both."""

    class Two(Linear):
        def more_in_model(self, x):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=x[:, 0])

    notes = check(Two(), real).notes

    assert notes[0].startswith('"x", "y" are observed')
    assert notes[1].startswith('"y" observes something computed from x')


def test_an_observation_in_the_guide_is_refused(real):
    """It would count as a part of log q."""

    class Watching(Linear):
        def more_in_guide(self, x):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=x[:, 0])

    assert mistake(Watching(), real).startswith('site "y" of the guide: observed in the guide')


def test_plates_of_unequal_size_in_model_and_guide_are_refused(real):
    """Pyro scales the one by N / B and the other not, and says nothing (T16)."""
    line = mistake(Plated(model_size=100), real)

    assert line.startswith('site "z" of the guide: pyro.plate("data", ...) has size 8')
    assert "expected 100" in line
    assert check(Plated(100, 100), real).scale == 12.5


def test_a_plate_smaller_than_the_batch_is_refused(real):
    """N is the number of all data."""
    lines = mistakes(Plated(5, 5), real)

    assert "has size 5, expected at least the 8 rows of x" in lines[0]


def test_a_scaled_site_is_refused(real):
    """Objectives weigh log densities themselves, so poutine.scale would be lost (T16)."""
    line = mistake(Plated(scale=0.1), real)

    assert line.startswith('site "z" of the model: log density scaled by 0.1, expected 1')
    assert "poutine.scale" in line
