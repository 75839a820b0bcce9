"""Python's search for reference cycles, held back while an invocation runs."""

from __future__ import annotations

import gc
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


def search_between(handler: Callable[P, T]) -> Callable[P, T]:
    """Make a handler during which nobody searches for cycles; what there are then is found between invocations.

    All that a large event brings lives until its end, so that each search on the way looks through all of it, and finds
    nothing. What is in no cycle is freed at once, as ever; an invocation holds no more of the others than it makes.
    """

    @wraps(handler)
    def invoke(*args: P.args, **kwargs: P.kwargs) -> T:
        gc.disable()
        try:
            return handler(*args, **kwargs)
        finally:
            gc.enable()

    return invoke
