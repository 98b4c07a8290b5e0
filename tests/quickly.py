"""Families of tests that try one mechanism on many members: some quickly, all by `make slow`."""

from collections.abc import Iterable
from typing import Any

import pytest


def some_quickly(members: Iterable[Any], *quick: Any) -> list[Any]:
    """The members as parameters of a test, those that are not among ``quick`` marked as slow.

    Args:
        members: Values of one parameter, or tuples of the values of several.
        quick: Those to run quickly, or what they print.

    Raises:
        ValueError: If one of ``quick`` is no member: renamed, it would leave nothing that runs.
    """
    members = list(members)
    names = [str(each) for each in members]
    unknown = [each for each in quick if each not in members and each not in names]
    if unknown:
        raise ValueError(f"{unknown} are not among {members}")
    return [
        each if each in quick or name in quick else slowly(each)
        for each, name in zip(members, names, strict=True)
    ]


def slowly(member: Any) -> Any:
    values = member if isinstance(member, tuple) else (member,)
    return pytest.param(*values, marks=pytest.mark.slow)
