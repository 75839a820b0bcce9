"""The parts of the executor that need no emulator: metric lines, unpacking, the pinned version."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

from threefold_ops.local.executor import emf
from threefold_ops.local.executor.content import ContentStore

REPOSITORY = Path(__file__).resolve().parents[2]


def parse(document: object) -> list[emf.Datum]:
    return list(emf.parse(json.dumps(document), account="000000000000", region="us-east-1"))


def test_a_metric_line_gives_each_metric_in_each_dimension_set() -> None:
    directive = {"Namespace": "T", "Dimensions": [["a"], ["a", "b"]], "Metrics": [{"Name": "m", "Unit": "Count"}]}
    data = parse({"_aws": {"Timestamp": 2000, "CloudWatchMetrics": [directive]}, "a": "1", "b": "2", "m": [3, 4]})
    assert [datum.body["Dimensions"] for datum in data] == [
        [{"Name": "a", "Value": "1"}],
        [{"Name": "a", "Value": "1"}, {"Name": "b", "Value": "2"}],
    ]
    assert {(datum.namespace, datum.body["Timestamp"], tuple(datum.body["Values"])) for datum in data} == {
        ("T", 2.0, (3, 4))
    }


def test_a_metric_line_without_dimensions_counts_once() -> None:
    directive = {"Namespace": "T", "Metrics": [{"Name": "m"}]}
    (datum,) = parse({"_aws": {"Timestamp": 1, "CloudWatchMetrics": [directive]}, "m": 1})
    assert (datum.body["Dimensions"], datum.body["Unit"], datum.body["Value"]) == ([], "None", 1)


def test_other_lines_and_broken_ones_give_nothing() -> None:
    assert parse({"message": "about _aws and CloudWatchMetrics"}) == []
    assert parse({"_aws": {"CloudWatchMetrics": "none"}}) == []
    assert list(emf.parse('{"_aws": CloudWatchMetrics', account="", region="")) == []


def test_the_same_content_is_unpacked_once_whatever_its_name(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as bundle:
        info = zipfile.ZipInfo("bin/run")
        info.external_attr = 0o100755 << 16
        bundle.writestr(info, "#!/bin/sh\n")
    store = ContentStore(tmp_path / "content")
    folder = store.unpack("one", content.getvalue())
    (folder / "mark").touch()
    assert store.unpack("two", bytes(bytearray(content.getvalue()))) == folder
    assert (folder / "mark").exists()
    assert (folder / "bin" / "run").stat().st_mode & 0o111


def test_the_executor_is_made_for_the_version_that_is_pinned() -> None:
    pinned = re.search(r"^ministack==(.+)$", (REPOSITORY / "requirements" / "emulator.in").read_text(), re.MULTILINE)
    plug = (REPOSITORY / "ops" / "threefold_ops" / "local" / "executor" / "plug.py").read_text()
    wanted = re.search(r'^MINISTACK_VERSION: Final = "(.+)"$', plug, re.MULTILINE)
    assert pinned is not None
    assert wanted is not None
    assert pinned[1] == wanted[1]
