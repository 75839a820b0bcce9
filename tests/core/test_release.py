"""The release document: who answers for a key, and what a version label reaches."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.errors import InvalidManifest, UnknownModel
from threefold.release import PREVIOUS, Challenger, Release, Version, route

CHAMPION = Version("a" * 64, "1.0.0")
CANARY = Challenger("b" * 64, "2.0.0", "canary", 10.0, "pepper")
KEYS = [f"customer-{i}" for i in range(20_000)]


def release(percent: float = 10.0, salt: str = "pepper", digest: str = CANARY.digest) -> Release:
    return Release(model="wine", champion=CHAMPION, challenger=Challenger(digest, "2.0.0", "canary", percent, salt))


def chosen(found: Release) -> set[str]:
    return {key for key in KEYS if route(found, key).role == "canary"}


@pytest.mark.parametrize("percent", [1.0, 10.0, 33.3, 50.0, 99.0])
def test_a_canary_gets_its_percent_of_the_keys(percent: float) -> None:
    # Three standard deviations of a fair draw.
    margin = 3 * (len(KEYS) * percent / 100 * (1 - percent / 100)) ** 0.5
    assert len(chosen(release(percent))) == pytest.approx(len(KEYS) * percent / 100, abs=margin)


def test_no_percent_is_nobody_and_a_hundred_is_everybody() -> None:
    assert chosen(release(0.0)) == set()
    assert len(chosen(release(100.0))) == len(KEYS)


@given(st.text(), st.floats(0, 100))
def test_a_key_goes_one_way_every_time(key: str, percent: float) -> None:
    found = release(percent)
    assert route(found, key) == route(found, key)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.floats(0, 100), st.floats(0, 100))
def test_who_is_in_stays_in_as_the_percent_grows(key: str, one: float, other: float) -> None:
    low, high = sorted([one, other])
    assert route(release(high), key).role == "canary" or route(release(low), key).role == "champion"


@pytest.mark.parametrize("change", [{"salt": "salt"}, {"digest": "c" * 64}])
def test_another_salt_or_challenger_puts_other_customers_first(change: dict[str, str]) -> None:
    first, second = chosen(release(10.0)), chosen(release(10.0, **change))
    # Independent draws of a tenth share a tenth of it.
    assert len(first & second) < len(first) / 5


def test_a_shadow_answers_nobody() -> None:
    found = replace(release(), challenger=Challenger("b" * 64, "2.0.0", "shadow", 100.0, "pepper"))
    assert chosen(found) == set()


def test_a_version_is_found_by_label_and_by_digest() -> None:
    found = replace(release(), previous=(Version("d" * 64, "0.9.0"),))
    assert found.find("1.0.0") == found.find("a" * 64)
    assert found.find("1.0.0").role == "champion"
    assert found.find("2.0.0").role == "canary"
    assert (found.find("0.9.0").digest, found.find("0.9.0").role) == ("d" * 64, "previous")


@pytest.mark.parametrize("version", ["", "1", "1.0", "3.0.0", "a" * 63, "../1.0.0", "\ud800"])
def test_a_version_that_the_release_does_not_name_is_unknown(version: str) -> None:
    with pytest.raises(UnknownModel, match="want a version out of"):
        release().find(version)


@pytest.mark.parametrize("challenger", [None, CANARY])
def test_a_release_survives_the_registry(challenger: Challenger | None) -> None:
    found = Release(
        model="wine",
        champion=CHAMPION,
        challenger=challenger,
        serving={"abstain_below": 0.6},
        previous=(Version("d" * 64, "0.9.0"),),
        at="2026-01-01T00:00:00.000Z",
        by="somebody",
        why="better",
    )
    assert Release.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_release_of_a_newer_schema_is_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidManifest, match=r"want schema 1 or older, got 2; upgrade"):
        Release.from_json(release().to_json() | {"schema": 2})


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        None,
        {"schema": 1},
        {**release().to_json(), "schema": "1"},
        {**release().to_json(), "champion": None},
        {**release().to_json(), "champion": {"digest": "a"}},
        {**release().to_json(), "challenger": {"digest": "a"}},
        {**release().to_json(), "previous": None},
    ],
)
def test_what_is_no_release_document_is_refused(document: Any) -> None:
    with pytest.raises(InvalidManifest):
        Release.from_json(document)


NOTE = {"at": "2026-01-01T00:00:00.000Z", "by": "ana", "why": "better"}


def promoted(found: Release, *labels: str) -> Release:
    for label in labels:
        found = found.promoted(Version(label * 64, label), **NOTE)
    return found


def test_a_promotion_keeps_who_was_champion_and_ends_the_trial() -> None:
    found = promoted(release(), "c", "d")
    assert (found.champion.version, found.challenger) == ("d", None)
    assert [former.version for former in found.previous] == ["c", "1.0.0"]
    assert (found.at, found.by, found.why) == tuple(NOTE.values())


def test_a_rollback_goes_further_back_each_time_and_never_to_what_was_left() -> None:
    found = promoted(release(), "c", "d", "e")
    for label in ("d", "c"):
        found = promoted(found, label)
        assert found.champion.version == label
        assert "e" not in {former.version for former in found.previous}
    assert [former.version for former in found.previous] == ["1.0.0"]


def test_a_release_names_a_bounded_number_of_former_champions() -> None:
    found = promoted(release(), *"cdefghijklmnopq")
    assert len(found.previous) == PREVIOUS
    assert found.previous[0].version == "p"


@given(st.lists(st.sampled_from("abcdef"), max_size=30))
def test_no_package_stands_twice_in_a_release(labels: list[str]) -> None:
    found = promoted(Release(model="wine", champion=CHAMPION), *labels)
    digests = [version.digest for version in found.named()]
    assert len(set(digests)) == len(digests)


def test_other_settings_leave_the_packages_alone() -> None:
    found = release().configured({"options": 5}, **NOTE)
    assert found == replace(release(), serving={"options": 5}, **NOTE)
