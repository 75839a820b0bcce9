"""What a function writes to CloudWatch: dimensions of models that exist, and no more."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from threefold.model import Answer
from threefold.names import Metric
from threefold.package import Output
from threefold.prediction import Outcomes, Part, Provenance
from threefold.settings import Settings
from threefold.telemetry import Telemetry

if TYPE_CHECKING:
    from threefold.release import Role


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry(Settings(door="predict"))


def written(telemetry: Telemetry, capsys: pytest.CaptureFixture[str], **properties: Any) -> list[dict[str, Any]]:
    capsys.readouterr()
    telemetry.flush(time.perf_counter(), **properties)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def dimensions(line: dict[str, Any]) -> list[list[str]]:
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "Threefold/dev"
    return sorted(sorted(names) for names in directive["Dimensions"])


def part(role: Role, size: int, rejected: int = 0, abstained: int = 0) -> Part:
    source = Provenance("wine", "1.0.0", "a" * 64, role, "release", "runtime")
    unsure = np.arange(size) < abstained if abstained else None
    positions = frozenset(range(rejected))
    return Part(source, Answer({}), Output(kind="tensors"), (), size, abstained=unsure, rejected=positions)


def test_a_model_is_a_dimension_with_its_door_and_with_its_role(
    telemetry: Telemetry, capsys: pytest.CaptureFixture[str]
) -> None:
    telemetry.outcomes(Outcomes("wine", ["1"], None, "now", [part("champion", 1)]))
    (line,) = written(telemetry, capsys, status=200)
    assert dimensions(line) == [["door"], ["door", "model"], ["model", "role"]]
    assert (line["door"], line["model"], line["role"], line["status"]) == ("predict", "wine", "champion", 200)
    assert line["Predictions"] == [1]
    assert line["ColdStart"] == [1]
    assert line["LatencyMs"][0] >= 0
    assert "version" not in dimensions(line)
    assert abs(line["_aws"]["Timestamp"] - time.time() * 1000) < 60_000


def test_only_the_first_invocation_is_a_cold_start(telemetry: Telemetry, capsys: pytest.CaptureFixture[str]) -> None:
    assert written(telemetry, capsys)[0]["ColdStart"] == [1]
    (line,) = written(telemetry, capsys)
    assert "ColdStart" not in line
    assert dimensions(line) == [["door"]]


def test_outcomes_are_counted_by_who_answered(telemetry: Telemetry, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [part("champion", 6, rejected=1, abstained=2), part("canary", 3, rejected=4)]
    telemetry.outcomes(Outcomes("wine", ["x"] * 14, None, "now", parts))
    lines = {line["role"]: line for line in written(telemetry, capsys)}
    counts = {
        role: [line.get(name, [0])[0] for name in (Metric.PREDICTIONS, Metric.ABSTAINED, Metric.REJECTED)]
        for role, line in lines.items()
    }
    assert counts == {"champion": [4, 2, 1], "canary": [3, 0, 4]}


def test_a_request_that_loads_its_model_is_timed_once(telemetry: Telemetry, capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.add(Metric.MODEL_LOAD, 3.5, "wine")
    telemetry.outcomes(Outcomes("wine", ["1"], None, "now", [part("champion", 1)]))
    lines = written(telemetry, capsys)
    assert [line.get("ModelLoadMs") for line in lines] == [[3.5], None]
    assert ["LatencyMs" in line for line in lines] == [False, True]


def test_nothing_is_carried_over_to_the_next_invocation(
    telemetry: Telemetry, capsys: pytest.CaptureFixture[str]
) -> None:
    telemetry.outcomes(Outcomes("wine", ["1"], None, "now", [part("champion", 1)]))
    written(telemetry, capsys)
    (line,) = written(telemetry, capsys)
    assert "model" not in line
    assert "Predictions" not in line


def test_more_values_than_a_line_may_have_are_all_written(
    telemetry: Telemetry, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(250):
        telemetry.add(Metric.STREAM_LAG, i, "wine")
    lines = written(telemetry, capsys)
    values = [value for line in lines for value in line.get(Metric.STREAM_LAG, [])]
    assert sorted(values) == list(range(250))
    assert all(len(line.get(Metric.STREAM_LAG, [])) <= 100 for line in lines)


def test_milliseconds_are_said_to_be_milliseconds(telemetry: Telemetry, capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.add(Metric.MODEL_LOAD, 3.5, "wine")
    (line,) = written(telemetry, capsys)
    units = {metric["Name"]: metric["Unit"] for metric in line["_aws"]["CloudWatchMetrics"][0]["Metrics"]}
    assert units == {"ModelLoadMs": "Milliseconds", "LatencyMs": "Milliseconds", "ColdStart": "Count"}
