"""What a stack writes is what a function reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.settings import OWN_VARIABLES, Settings

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1)


@given(
    st.builds(
        Settings,
        door=TEXT,
        auth=st.sampled_from(["iam", "jwt", "none"]),
        model_bucket=TEXT,
        refresh_seconds=st.floats(0.001, 1e6),
        session_cache_megabytes=st.integers(1, 10_000),
        ttl_days=st.integers(1, 10_000),
    )
)
def test_the_environment_and_the_settings_are_each_others_inverse(settings: Settings) -> None:
    assert Settings.from_env(settings.to_env()) == settings


def test_a_stack_never_writes_lambdas_own_variables() -> None:
    own = Settings(memory_megabytes=3008, endpoint_url="http://x", region="eu-west-1", initialization="on-demand")
    assert own.to_env() == {}
    read = Settings.from_env({OWN_VARIABLES["memory_megabytes"]: "3008", OWN_VARIABLES["region"]: "eu-west-1"})
    assert (read.memory_megabytes, read.region) == (3008, "eu-west-1")


@pytest.mark.parametrize(("memory", "threads"), [(128, 1), (1769, 1), (3537, 1), (3538, 2), (10240, 5)])
def test_a_function_has_as_many_threads_as_whole_processors(memory: int, threads: int) -> None:
    assert Settings(memory_megabytes=memory).threads == threads


def test_loaded_models_get_two_fifths_of_the_memory_unless_it_is_set() -> None:
    assert Settings(memory_megabytes=1000).session_cache_bytes == 400 * 1024**2
    assert Settings(memory_megabytes=1000, session_cache_megabytes=100).session_cache_bytes == 100 * 1024**2


@pytest.mark.parametrize(("variable", "text"), [("THREEFOLD_TTL_DAYS", "soon"), ("THREEFOLD_REFRESH_SECONDS", "1,5")])
def test_a_number_that_is_none_is_named_by_its_variable(variable: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"{variable}: want .* got '{text}'"):
        Settings.from_env({variable: text})


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert Settings.from_env({"THREEFOLD_TTL_DAYS": "", "THREEFOLD_DOOR": ""}) == Settings()
