"""The deliberate errors, and what other rooms know of them by name."""

from __future__ import annotations

from threefold import errors
from threefold.names import RETRYABLE


def test_step_functions_retries_what_the_batch_door_may_raise_and_a_retry_may_mend() -> None:
    """They are names there, for the stacks load no core; a release conflict is an operator's, and no door's."""
    found = {
        kind.__name__
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.ThreefoldError) and kind.retryable
    }
    assert found - {"ReleaseConflict"} == set(RETRYABLE)


def test_every_error_has_a_code_of_its_own() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ThreefoldError)
    ]
    assert len({kind.code for kind in kinds}) == len(kinds)
