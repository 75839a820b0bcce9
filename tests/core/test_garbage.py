"""The search for cycles waits for the end of an invocation, however it ends."""

from __future__ import annotations

import gc

import pytest

from threefold.garbage import search_between


@search_between
def ratio(dividend: int, *, divisor: int) -> tuple[float, bool]:
    """A quotient, and whether cycles are searched for meanwhile."""
    return dividend / divisor, gc.isenabled()


def test_nobody_searches_for_cycles_during_an_invocation() -> None:
    assert ratio(6, divisor=2) == (3.0, False)
    assert gc.isenabled()


def test_an_invocation_that_fails_leaves_the_search_as_it_was() -> None:
    with pytest.raises(ZeroDivisionError):
        ratio(6, divisor=0)
    assert gc.isenabled()
