"""Long work says where it stands: on a terminal, in a log, to a callable, or not at all."""

import pytest

from pyro_vae import progress
from pyro_vae.progress import counting


def test_a_callable_is_told_how_much_is_done_and_never_more_than_there_is():
    told = []

    with counting(told.append, 10, label="work") as advance:
        for n in (4, 4, 4):
            advance(n)

    assert [record.samples for record in told] == [4, 8, 10]
    assert [record.step for record in told] == [1, 2, 3]
    assert all(record.columns == {} for record in told)


def test_a_log_gets_a_line_a_minute_with_the_time_that_is_left(monkeypatch, capsys):
    seconds = iter([0.0, 0.0, 30.0, 30.0, 90.0, 90.0, 90.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))

    with counting(None, 100, label="log p(x)", unit=" data") as advance:
        advance(10)
        advance(50)

    assert capsys.readouterr().err == "log p(x): 60 of 100 data in 90 s, 60 s left\n"


@pytest.mark.parametrize("shown", [True, False])
def test_a_live_line_is_shown_where_it_is_asked_for_alone(shown, capsys):
    with counting(shown, 3, label="work") as advance:
        advance()
        advance(2)

    assert ("3/3" in capsys.readouterr().err) == shown


@pytest.mark.parametrize("progress", ["yes", 3])
def test_what_is_neither_yes_nor_no_nor_a_function_is_refused(progress):
    expected = pytest.raises(TypeError, match="expected None, True, False or a function")
    with expected, counting(progress, 3, label="work"):
        pass
