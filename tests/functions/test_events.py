"""Every event under events/ is answered as the file beside it says.

The envelopes are those that AWS documents, the records were held out of training, and the values are what the training
library said of them. In an expectation `*` stands for anything but nothing: an id that is minted, a time, a digest.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from tests.functions.conftest import Api, Stream

EVENTS: Final = Path(__file__).resolve().parents[2] / "events"
ANY: Final = "*"
TOLERANCE: Final = 1e-5
# An event of the batch function speaks of an upload: test_batch.py replays them, each after those that come before it.
ELSEWHERE: Final = frozenset({"batch"})
CASES: Final = sorted(
    path
    for path in EVENTS.glob("*/*.json")
    if not path.name.endswith(".expected.json") and path.parent.name not in ELSEWHERE
)


def differences(want: Any, got: Any, where: str = "") -> list[str]:
    """All places where an answer is not what was expected."""
    if want == ANY:
        return [] if got is not None else [f"{where}: want something, got nothing"]
    if isinstance(want, dict) and isinstance(got, dict):
        found = [f"{where}.{name}: want {want.get(name)!r}, got {got.get(name)!r}" for name in want.keys() ^ got.keys()]
        return found + [
            part for name in want.keys() & got for part in differences(want[name], got[name], f"{where}.{name}")
        ]
    if isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        pairs = enumerate(zip(want, got, strict=True))
        return [part for i, (left, right) in pairs for part in differences(left, right, f"{where}[{i}]")]
    if isinstance(want, float) and isinstance(got, float | int) and not isinstance(got, bool):
        same = got == pytest.approx(want, rel=TOLERANCE, abs=TOLERANCE)
    else:
        same = type(want) is type(got) and want == got
    return [] if same else [f"{where}: want {want!r}, got {got!r}"]


class Replay:
    """How an event of each function is replayed, and its whole answer read."""

    def __init__(
        self,
        bucket: str,
        load: Callable[..., ModuleType],
        make_stream: Callable[..., Stream],
        make_api: Callable[..., Api],
    ) -> None:
        self.bucket, self.load, self.make_stream, self.make_api = bucket, load, make_stream, make_api

    def predict(self, event: dict[str, Any]) -> dict[str, Any]:
        response = self.load("predict", THREEFOLD_MODEL_BUCKET=self.bucket).handler(event, None)
        return response | {"body": json.loads(response["body"])}

    def api(self, event: dict[str, Any]) -> dict[str, Any]:
        api = self.make_api(self.bucket)
        response = api.module.handler(event, None)
        return response | {"body": json.loads(response["body"])}

    def stream(self, event: dict[str, Any]) -> dict[str, Any]:
        stream = self.make_stream(self.bucket)
        failures = [{"itemIdentifier": identity} for identity in stream.handle(*event["Records"])]
        return {
            "response": {"batchItemFailures": failures},
            "sent": sorted(stream.sent(), key=lambda found: found["id"]),
        }

    def monitor(self, event: dict[str, Any]) -> dict[str, Any]:
        context = SimpleNamespace(get_remaining_time_in_millis=lambda: 900_000)
        answer: dict[str, Any] = self.load("monitor", THREEFOLD_MODEL_BUCKET=self.bucket).handler(event, context)
        return answer


# A function's folder under events/, and what replays it: another function joins with a method above and a line here.
REPLAYS: Final[dict[str, Callable[[Replay, dict[str, Any]], dict[str, Any]]]] = {
    "api": Replay.api,
    "predict": Replay.predict,
    "stream": Replay.stream,
    "monitor": Replay.monitor,
}


def test_every_folder_of_events_is_replayed() -> None:
    assert {path.parent.name for path in CASES} == REPLAYS.keys()


def test_every_event_has_an_expectation_and_every_expectation_an_event() -> None:
    expectations = {path.with_suffix("").with_suffix("") for path in EVENTS.glob("*/*.expected.json")}
    expectations = {path for path in expectations if path.parent.name not in ELSEWHERE}
    assert expectations == {path.with_suffix("") for path in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}/{case.stem}")
def test_an_event_is_answered_as_expected(
    case: Path,
    example_bucket: str,
    load: Callable[..., ModuleType],
    make_stream: Callable[..., Stream],
    make_api: Callable[..., Api],
) -> None:
    want = json.loads(case.with_suffix(".expected.json").read_text())
    if "sent" in want:
        want["sent"].sort(key=lambda found: found["id"])
    replay = REPLAYS[case.parent.name]
    got = replay(Replay(example_bucket, load, make_stream, make_api), json.loads(case.read_text()))
    assert differences(want, got) == []


@pytest.mark.parametrize(
    ("want", "got"),
    [
        ({"a": 1}, {}),
        ({}, {"a": 1}),
        ({"a": ANY}, {"a": None}),
        ([1], [1, 2]),
        (1.0, 1.001),
        (1, 1.0),
        (1, True),
        ("NaN", 1.0),
        ({"a": [{"b": 1.0}]}, {"a": [{"b": 2.0}]}),
    ],
)
def test_a_difference_is_seen(want: object, got: object) -> None:
    assert len(differences(want, got)) == 1
