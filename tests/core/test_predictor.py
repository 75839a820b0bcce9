"""The one path: which package answers, what stands in for it, and how each record ends."""

from __future__ import annotations

import json
import shutil
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import obstore
import pytest

from threefold.errors import InvalidPackage, NotServable, OutsideSignature, RegistryUnreachable, UnknownModel
from threefold.package import Output, Package, digest_of, open_package, pack
from threefold.package_store import PackageStore
from threefold.predictor import RUNTIME, Predictor
from threefold.registry import Registry
from threefold.release import Challenger, Release, Version
from threefold.request import Matrix, Records, Request, Tensors
from threefold.sessions import RETRY_SECONDS
from threefold.signature import Feature

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from obstore.store import MemoryStore, S3Store

    from tests.conftest import Graphs, PackageMaker
    from tests.core.conftest import Clock, Line, Shelf
    from threefold.model import Model

CLASSES = ("low", "mid", "high")
FEATURES = tuple(Feature(name=name, type="float32", min=-100, max=100) for name in ("a", "b"))
SCORES = tuple(Feature(name=name, type="float32") for name in CLASSES)
VALUE = Output(kind="regression", value="value")
MEGABYTE = 1024**2


class Made:
    """Packages of one model, each with its own answer."""

    def __init__(self, graphs: Graphs, make_package: PackageMaker) -> None:
        self.graphs, self.make_package = graphs, make_package

    def regression(self, bias: float, *, version: str = "1.0.0", name: str = "wine", **fields: Any) -> Package:
        """value = a + b + bias."""
        fields = {"features": FEATURES, "output": VALUE, "key": "id"} | fields
        return self.make_package(self.graphs.linear([1, 1], bias), name=name, version=version, **fields)

    def refused(self, version: str = "2.0.0") -> Package:
        """A package that fails its own examples."""
        wrong = [{"record": {"a": 1, "b": 1}, "expect": {"value": 999}}]
        return self.regression(5.0, version=version, examples=wrong)

    def classifier(self, datatype: str = "FP32") -> Package:
        """Says what its features say."""
        output = Output(kind="classification", label="label", scores="scores", classes=CLASSES)
        graph = self.graphs.scorer(CLASSES, datatype)
        return self.make_package(graph, name="wine", features=SCORES, output=output)


@pytest.fixture
def made(graphs: Graphs, make_package: PackageMaker) -> Made:
    return Made(graphs, make_package)


@pytest.fixture
def observed() -> list[tuple[str, float, str]]:
    return []


@pytest.fixture
def predictor(registry: Registry, observed: list[tuple[str, float, str]]) -> Predictor:
    return Predictor(
        registry,
        budget_bytes=100 * MEGABYTE,
        now=lambda: datetime(2026, 1, 2, 3, 4, 5, 678_900, UTC),
        observe=lambda metric, value, model: observed.append((metric, value, model)),
    )


def records(*values: float, **fields: object) -> Request:
    return Request(model="wine", rows=Records([{"a": value, "b": 0} for value in values]), **fields)  # type: ignore[arg-type]


def values(predictor: Predictor, request: Request) -> list[object]:
    return [prediction.get("value", prediction["status"]) for prediction in predictor.predict(request).predictions()]


def publish(registry: Registry, release: Release, *packages: Package) -> None:
    for package in packages:
        registry.packages.publish(package)
    current = registry.current(release.model)
    registry.write_release(release, replaces=current and current[1])


def canary(champion: Package, challenger: Package, percent: float = 50.0) -> Release:
    trial = Challenger(challenger.digest, challenger.manifest.version, "canary", percent, "salt")
    return Release(model="wine", champion=Version(champion.digest, champion.manifest.version), challenger=trial)


def test_a_hundred_models_share_a_budget_smaller_than_all_of_them(
    registry: Registry, made: Made, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = [made.regression(float(i), name=f"model-{i}") for i in range(100)]
    for package in packages:
        shelf.release(registry, package)
    size = predictor_size(packages[0], registry)
    predictor = Predictor(registry, budget_bytes=30 * size)
    for turn in (1, 2):
        for i in range(100):
            request = Request(model=f"model-{i}", rows=Records([{"a": turn, "b": 0}]))
            assert values(predictor, request) == [turn + i]
            assert predictor.sessions.size_bytes <= 30 * size
    assert len(predictor.sessions) == 30
    assert predictor.sessions.peek(packages[0].digest) is None
    # One that was put out comes back, and its answer is the same.
    assert values(predictor, Request(model="model-0", rows=Records([{"a": 1, "b": 0}]))) == [1.0]


def predictor_size(package: Package, registry: Registry) -> int:
    alone = Predictor(registry, budget_bytes=1)
    alone.ready(package.manifest.name)
    return alone.sessions.size_bytes


def test_every_outcome_says_where_it_comes_from(
    registry: Registry, predictor: Predictor, made: Made, shelf: Shelf
) -> None:
    package = made.regression(0.0)
    shelf.release(registry, package)
    request = Request(
        model="wine",
        rows=Records([{"a": 1, "b": 2}, {"a": "x", "b": 2}]),
        ids=["one", "two"],
        keys=["k1", None],
    )
    good, bad = predictor.predict(request).predictions()
    provenance = {
        "model": "wine",
        "version": "1.0.0",
        "digest": package.digest,
        "role": "champion",
        "release": registry.release("wine").id,
        "runtime": RUNTIME,
        "at": "2026-01-02T03:04:05.678Z",
    }
    assert good == provenance | {"id": "one", "key": "k1", "status": "predicted", "value": 3.0}
    assert bad == provenance | {
        "id": "two",
        "status": "rejected",
        "code": "outside_signature",
        "message": "input 'a': want FP32 in [-100, 100], got 'x'",
    }


def test_ids_are_minted_where_there_are_none(
    registry: Registry, predictor: Predictor, made: Made, shelf: Shelf
) -> None:
    shelf.release(registry, made.regression(0.0))
    ids = [prediction["id"] for prediction in predictor.predict(records(*range(50))).predictions()]
    assert len(set(ids)) == 50
    assert {len(identity) for identity in ids} == {32}


def test_one_bad_record_fails_alone(registry: Registry, predictor: Predictor, made: Made, shelf: Shelf) -> None:
    shelf.release(registry, made.regression(0.0))
    rows: list[Any] = [{"a": 1, "b": 1}, None, {"a": 2, "b": 2}, {"a": 1e9, "b": 1}, {}, {"a": 3, "b": 3}]
    outcomes = predictor.predict(Request(model="wine", rows=Records(rows)))
    assert [prediction["status"][0] for prediction in outcomes.predictions()] == list("prprrp")
    assert [prediction.get("value") for prediction in outcomes.predictions()] == [2, None, 4, None, None, 6]
    assert list(outcomes.problems) == [1, 3, 4]


def test_records_that_are_all_bad_have_outcomes_too(
    registry: Registry, predictor: Predictor, made: Made, shelf: Shelf
) -> None:
    package = made.regression(0.0)
    shelf.release(registry, package)
    outcomes = predictor.predict(Request(model="wine", rows=Records([{}, {}])))
    assert [(found["status"], found["digest"]) for found in outcomes.predictions()] == [
        ("rejected", package.digest)
    ] * 2


@pytest.mark.parametrize("bad", [[1], [0], [3], [0, 1, 2], [0, 1, 2, 3]])
def test_a_record_that_the_graph_refuses_fails_alone(
    *,
    bad: list[int],
    registry: Registry,
    predictor: Predictor,
    graphs: Graphs,
    make_package: PackageMaker,
    shelf: Shelf,
) -> None:
    features = (Feature(name="x", type="int64"),)
    package = make_package(graphs.lookup(), name="wine", features=features, output=Output(kind="regression", value="y"))
    shelf.release(registry, package)
    rows = [{"x": 99 if i in bad else i % 3} for i in range(4)]
    outcomes = predictor.predict(Request(model="wine", rows=Records([{"x": "no"}, *rows])))
    said = [prediction.get("value", prediction["status"]) for prediction in outcomes.predictions()]
    assert said == ["rejected", *("rejected" if i in bad else 10.0 * (i % 3 + 1) for i in range(4))]
    for i in bad:
        assert "must be within the inclusive range" in outcomes.problems[i + 1][0]


def test_tensors_that_the_graph_refuses_fail_alone(
    registry: Registry, predictor: Predictor, graphs: Graphs, make_package: PackageMaker, shelf: Shelf
) -> None:
    shelf.release(registry, make_package(graphs.lookup(), name="wine"))
    rows = [np.array([[0], [1]]), np.array([[7]]), np.array([[2]]), np.array([["x"]], np.object_), np.array([[2], [9]])]
    outcomes = predictor.predict(Request(model="wine", rows=Tensors([{"x": array} for array in rows])))
    said = [list(found["tensors"][0]["data"]) if "tensors" in found else "no" for found in outcomes.predictions()]
    assert said == [[10.0, 20.0], "no", [30.0], "no", "no"]


def test_who_sends_tensors_gets_tensors_as_many_rows_as_were_sent(
    registry: Registry, predictor: Predictor, made: Made, shelf: Shelf
) -> None:
    shelf.release(registry, made.classifier(), serving={"abstain_below": 0.9})
    rows = [np.tile(np.array([0.1, 0.2, 0.3], np.float32), (count, 1)) for count in (1, 3, 0, 2)]
    outcomes = predictor.predict(Request(model="wine", rows=Tensors([{"x": array} for array in rows])))
    found = outcomes.predictions()
    assert [prediction["tensors"][0]["shape"] for prediction in found] == [[1], [3], [0], [2]]
    assert [prediction["tensors"][1]["shape"] for prediction in found] == [[1, 3], [3, 3], [0, 3], [2, 3]]
    assert {prediction["status"] for prediction in found} == {"predicted"}
    # One record alone gets what it got among others.
    alone = predictor.predict(Request(model="wine", rows=Tensors([{"x": rows[1]}]))).predictions()[0]
    assert alone["tensors"][0]["data"] == found[1]["tensors"][0]["data"] == ["high"] * 3


def test_records_that_cannot_share_a_call_get_one_each(
    registry: Registry, predictor: Predictor, graphs: Graphs, make_package: PackageMaker, shelf: Shelf
) -> None:
    shelf.release(registry, make_package(graphs.total(), name="wine"))
    rows = [np.arange(count, dtype=np.float32) for count in (1, 2, 5)]
    rows.insert(1, np.zeros((2, 2), np.float32))
    outcomes = predictor.predict(Request(model="wine", rows=Tensors([{"x": array} for array in rows])))
    found = outcomes.predictions()
    assert [prediction["status"] for prediction in found] == ["predicted", "rejected", "predicted", "predicted"]
    assert [prediction["tensors"][0]["data"].tolist() for prediction in found if "tensors" in prediction] == [
        [0.0],
        [1.0],
        [10.0],
    ]
    assert found[0]["tensors"][0]["shape"] == []


def test_a_tensor_without_dimensions_is_a_record(
    registry: Registry, predictor: Predictor, graphs: Graphs, make_package: PackageMaker, shelf: Shelf
) -> None:
    shelf.release(registry, make_package(graphs.identity("FP32", []), name="wine"))
    for count in (1, 3):
        rows = Tensors([{"x": np.array(i, np.float32)} for i in range(count)])
        found = predictor.predict(Request(model="wine", rows=rows)).predictions()
        assert [prediction["tensors"][0]["data"].tolist() for prediction in found] == [[i] for i in range(count)]


def test_records_for_a_model_that_takes_tensors_only_are_refused(
    registry: Registry, predictor: Predictor, graphs: Graphs, make_package: PackageMaker, shelf: Shelf
) -> None:
    shelf.release(registry, make_package(graphs.addition(), name="wine"))
    for rows in (Records([{"a": 1}]), Matrix(np.zeros((1, 2)), ("a", "b"))):
        with pytest.raises(OutsideSignature, match=r"want tensors \['left', 'right'\]"):
            predictor.predict(Request(model="wine", rows=rows))


def test_a_matrix_and_its_records_get_the_same_outcomes(
    registry: Registry, predictor: Predictor, made: Made, shelf: Shelf
) -> None:
    shelf.release(registry, made.regression(0.25))
    matrix = np.array([[1.5, 2.0], [np.nan, 1.0], [1e9, 0.0], [-3.0, 100.0]])
    rows = Records([{"a": a, "b": b} for a, b in matrix.tolist()])
    ids = [str(i) for i in range(4)]
    kept = matrix.copy()
    for names in (("a", "b"), ("b", "a")):
        columns = matrix if names == ("a", "b") else np.ascontiguousarray(matrix[:, ::-1])
        request = Request(model="wine", rows=Matrix(columns, names), ids=ids)
        assert predictor.predict(request).predictions() == predictor.predict(replace(request, rows=rows)).predictions()
    np.testing.assert_array_equal(matrix, kept)


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_a_score_of_just_the_threshold_is_an_answer(
    datatype: str, registry: Registry, predictor: Predictor, made: Made, shelf: Shelf
) -> None:
    shelf.release(registry, made.classifier(datatype), serving={"abstain_below": 0.6, "options": 2})
    rows = [{"low": 0.1, "mid": 0.6, "high": 0.3}, {"low": 0.1, "mid": 0.59, "high": 0.31}]
    sure, unsure = predictor.predict(Request(model="wine", rows=Records(rows))).predictions()
    assert (sure["status"], sure["label"], float(sure["score"])) == ("predicted", "mid", pytest.approx(0.6, rel=1e-3))
    assert unsure["status"] == "abstained"
    assert "label" not in unsure
    assert [option["label"] for option in unsure["options"]] == ["mid", "high"]
    assert [float(option["score"]) for option in unsure["options"]] == pytest.approx([0.59, 0.31], rel=1e-3)


def test_a_score_that_is_no_number_is_no_answer(
    registry: Registry, predictor: Predictor, graphs: Graphs, make_package: PackageMaker, shelf: Shelf
) -> None:
    features = tuple(Feature(name=name, type="float32", missing=float("nan")) for name in CLASSES)
    output = Output(kind="classification", scores="scores", classes=CLASSES)
    package = make_package(graphs.scorer(CLASSES, label=False), name="wine", features=features, output=output)
    shelf.release(registry, package, serving={"abstain_below": 0.6})
    found = predictor.predict(Request(model="wine", rows=Records([{"low": 1, "mid": 0, "high": 0}, {}]))).predictions()
    assert [prediction["status"] for prediction in found] == ["predicted", "abstained"]
    assert found[1]["score"] == "NaN"
    assert found[1]["reasons"][0] == "input 'low': missing, nan stands in"


def test_the_request_keeps_its_order_when_two_packages_answer_it(
    registry: Registry, predictor: Predictor, made: Made
) -> None:
    champion, challenger = made.regression(0.0), made.regression(1000.0, version="2.0.0")
    publish(registry, canary(champion, challenger, 40.0), champion, challenger)
    rows = [{"a": i % 90, "b": 0} for i in range(300)]
    rows[7] = rows[8] = {"a": "x", "b": 0}
    keys = [f"customer-{i % 60}" for i in range(300)]
    outcomes = predictor.predict(Request(model="wine", rows=Records(rows), keys=keys))
    found = outcomes.predictions()
    for i, prediction in enumerate(found):
        if i not in {7, 8}:
            assert prediction["value"] == i % 90 + (1000 if prediction["role"] == "canary" else 0)
    by_key: dict[str, set[tuple[str, str]]] = {}
    for prediction in found:
        by_key.setdefault(prediction["key"], set()).add((prediction["role"], prediction["digest"]))
    # Sticky, rejections included: who judged a record is who its key belongs to.
    assert all(len(judges) == 1 for judges in by_key.values())
    assert Counter(prediction["role"] for prediction in found)["canary"] == pytest.approx(120, abs=60)
    assert sum(part.size + len(part.rejected) for part in outcomes.parts) == 300


def test_a_canary_that_rejects_is_the_one_that_is_named(registry: Registry, predictor: Predictor, made: Made) -> None:
    champion = made.regression(0.0)
    narrow = tuple(replace(feature, max=0.5) for feature in FEATURES)
    challenger = made.regression(0.0, version="2.0.0", features=narrow)
    publish(registry, canary(champion, challenger), champion, challenger)
    outcomes = predictor.predict(records(*[1.0] * 40, keys=[f"key-{i}" for i in range(40)]))
    found = {(prediction["status"], prediction["role"]) for prediction in outcomes.predictions()}
    assert found == {("predicted", "champion"), ("rejected", "canary")}


def test_a_version_that_is_asked_for_answers(registry: Registry, predictor: Predictor, made: Made) -> None:
    old, champion, challenger = made.regression(1), made.regression(2, version="2"), made.regression(3, version="3")
    release = replace(canary(champion, challenger), previous=(Version(old.digest, "1.0.0"),))
    publish(registry, release, old, champion, challenger)
    said = {}
    for version in ("1.0.0", "2", "3", old.digest, None):
        prediction = predictor.predict(records(0, version=version, keys=["somebody"])).predictions()[0]
        said[version] = (prediction["value"], prediction["role"])
    assert said["1.0.0"] == said[old.digest] == (1.0, "previous")
    assert (said["2"], said["3"]) == ((2.0, "champion"), (3.0, "canary"))
    assert said[None] in {said["2"], said["3"]}
    with pytest.raises(UnknownModel):
        predictor.predict(records(0, version="4"))


def test_a_release_id_pins_what_answers(
    registry: Registry, predictor: Predictor, made: Made, shelf: Shelf, clock: Clock
) -> None:
    shelf.release(registry, made.regression(1))
    pinned = registry.release("wine").id
    assert values(predictor, records(0, release_id=pinned)) == [1.0]
    shelf.release(registry, made.regression(2, version="2.0.0"))
    clock.seconds += 31
    assert values(predictor, records(0)) == [2.0]
    assert values(predictor, records(0, release_id=pinned)) == [1.0]


def test_the_last_good_model_goes_on_when_a_new_one_is_refused(
    registry: Registry, predictor: Predictor, made: Made, shelf: Shelf, observed: list[tuple[str, float, str]]
) -> None:
    good = made.regression(1)
    shelf.release(registry, good)
    predictor.ready("wine")
    shelf.release(registry, made.refused())
    for _ in range(3):
        prediction = predictor.predict(records(0)).predictions()[0]
        assert (prediction["value"], prediction["digest"], prediction["role"]) == (1.0, good.digest, "fallback")
    assert observed.count(("PackageRefused", 1, "wine")) == 3
    assert observed.count(("ModelLoadMs", observed[0][1], "wine")) == 1
    assert "examples.jsonl:1: want value 999" in predictor.refusals["wine"]
    with pytest.raises(NotServable, match=r"want its champion 2\.0\.0, got 1\.0\.0: .*want value 999"):
        predictor.ready("wine")
    # Who asks for the refused one by its name gets no other.
    with pytest.raises(InvalidPackage):
        predictor.predict(records(0, version="2.0.0"))
    shelf.release(registry, made.regression(3, version="3.0.0"))
    assert values(predictor, records(0)) == [3.0]
    assert predictor.refusals == {}


def test_the_last_good_model_goes_on_when_a_new_one_cannot_be_unpacked(
    registry: Registry, store: MemoryStore, predictor: Predictor, made: Made, shelf: Shelf
) -> None:
    shelf.release(registry, made.regression(1))
    predictor.ready("wine")
    broken = made.regression(2, version="2.0.0")
    shelf.release(registry, broken)
    obstore.put(store, f"packages/wine/{broken.digest}.zip", b"PK no zip")
    assert predictor.key_field("wine") == "id"
    assert values(predictor, records(0)) == [1.0]


def test_the_last_good_model_is_loaded_again_if_it_was_put_out_meanwhile(
    registry: Registry, made: Made, shelf: Shelf
) -> None:
    predictor = Predictor(registry, budget_bytes=1)
    shelf.release(registry, made.regression(1))
    other = made.regression(9, name="other")
    shelf.release(registry, other)
    predictor.ready("wine")
    shelf.release(registry, made.refused())
    predictor.ready("other")
    assert values(predictor, records(0)) == [1.0]
    assert predictor.key_field("wine") == "id"


def test_a_cold_start_with_a_refused_champion_says_why(
    registry: Registry, predictor: Predictor, made: Made, shelf: Shelf
) -> None:
    shelf.release(registry, made.refused())
    with pytest.raises(InvalidPackage, match="want value 999"):
        predictor.predict(records(0))


def test_a_cold_start_with_a_refused_champion_answers_by_what_was_released_before(
    registry: Registry, predictor: Predictor, made: Made, shelf: Shelf, observed: list[tuple[str, float, str]]
) -> None:
    """Otherwise an outage grows with each new process, while the warm ones look well."""
    good = made.regression(1)
    shelf.release(registry, good)
    shelf.release(registry, made.refused(), previous=(Version(good.digest, "1.0.0"),))
    (prediction,) = predictor.predict(records(1)).predictions()
    assert (prediction["role"], prediction["digest"]) == ("fallback", good.digest)
    assert predictor.key_field("wine") == "id"
    with pytest.raises(NotServable, match=r"examples\.jsonl:1"):
        predictor.ready("wine")
    assert "PackageRefused" in {metric for metric, _, _ in observed}


def test_an_absent_registry_is_no_refused_package(
    registry: Registry,
    predictor: Predictor,
    made: Made,
    monkeypatch: pytest.MonkeyPatch,
    observed: list[tuple[str, float, str]],
) -> None:
    package = made.regression(1)
    publish(registry, Release(model="wine", champion=Version(package.digest, "1.0.0")), package)

    def away(_model: str, _digest: str) -> Package:
        message = "away"
        raise RegistryUnreachable(message)

    monkeypatch.setattr(registry.packages, "open", away)
    with pytest.raises(RegistryUnreachable):
        predictor.predict(records(1))
    assert "PackageRefused" not in {metric for metric, _, _ in observed}


def test_a_graph_that_refuses_only_company_answers_each_record_alone(
    registry: Registry, predictor: Predictor, made: Made, shelf: Shelf
) -> None:
    """As exports that were traced with one row often are: [n, 2] by declaration, [1, 2] inside."""
    shelf.release(
        registry, made.make_package(made.graphs.lonely(), name="wine", features=FEATURES, output=VALUE, key="id")
    )
    assert values(predictor, records(1)) == [1.0]
    assert values(predictor, records(1, 2, 3)) == [1.0, 2.0, 3.0]


def test_a_refused_canary_takes_nobody_down(registry: Registry, predictor: Predictor, made: Made) -> None:
    champion, challenger = made.regression(1), made.refused()
    publish(registry, canary(champion, challenger, 100.0), champion, challenger)
    # At a cold start, when no champion was loaded yet.
    found = predictor.predict(records(0, 1, 2)).predictions()
    assert [(prediction["value"], prediction["role"]) for prediction in found] == [
        (1.0, "fallback"),
        (2.0, "fallback"),
        (3.0, "fallback"),
    ]
    assert {prediction["digest"] for prediction in found} == {champion.digest}


class SlowPackages(PackageStore):
    """Hands one package out only when a test says so."""

    slow = ""

    def __init__(self, *args: Any, **fields: Any) -> None:
        super().__init__(*args, **fields)
        self.gate = threading.Event()

    def open(self, model: str, digest: str) -> Package:
        if digest == self.slow:
            assert self.gate.wait(10)
        return super().open(model, digest)


class SlowRegistry(Registry):
    """A registry of such packages."""

    packages: SlowPackages


@pytest.fixture
def slow_registry(store: MemoryStore, clock: Clock, tmp_path: Path) -> SlowRegistry:
    registry = SlowRegistry(store, cache=tmp_path / "cache", baked=tmp_path / "baked", clock=clock)
    registry.packages = SlowPackages(store, cache=tmp_path / "cache", baked=tmp_path / "baked")
    return registry


def settle(predictor: Predictor) -> None:
    """Wait until nothing is brought any more."""
    for future in list(predictor.sessions._bringing.values()):
        future.exception(10)


@pytest.mark.parametrize("budget_bytes", [10**9, 1])
def test_the_last_good_model_answers_while_a_new_one_loads(
    budget_bytes: int, slow_registry: SlowRegistry, made: Made, shelf: Shelf
) -> None:
    predictor = Predictor(slow_registry, budget_bytes=budget_bytes, load_budget_seconds=0.02)
    shelf.release(slow_registry, made.regression(1))
    predictor.ready("wine")
    new = made.regression(2, version="2.0.0")
    shelf.release(slow_registry, new)
    slow_registry.packages.slow = new.digest
    found = predictor.predict(records(0)).predictions()[0]
    assert (found["value"], found["role"], found["version"]) == (1.0, "fallback", "1.0.0")
    assert predictor.key_field("wine") == "id"
    with pytest.raises(NotServable, match="still being loaded"):
        predictor.ready("wine")
    slow_registry.packages.gate.set()
    settle(predictor)
    predictor._load_budget_seconds = 10
    assert values(predictor, records(0)) == [2.0]
    predictor.ready("wine")
    assert len(predictor.sessions) == (1 if budget_bytes == 1 else 2)


def test_a_last_good_model_that_was_put_out_of_memory_answers_while_a_new_one_loads(
    slow_registry: SlowRegistry, made: Made, shelf: Shelf
) -> None:
    """Otherwise who has many models would wait for each new one as long as its download takes."""
    predictor = Predictor(slow_registry, budget_bytes=1, load_budget_seconds=0.02)
    shelf.release(slow_registry, made.regression(1))
    shelf.release(slow_registry, made.regression(9, name="other"))
    predictor.ready("wine")
    predictor.ready("other")
    new = made.regression(2, version="2.0.0")
    shelf.release(slow_registry, new)
    slow_registry.packages.slow = new.digest
    assert predictor.key_field("wine") == "id"
    assert values(predictor, records(0)) == [1.0]
    slow_registry.packages.gate.set()
    settle(predictor)
    predictor._load_budget_seconds = 10
    assert values(predictor, records(0)) == [2.0]


def test_a_cold_start_waits_for_what_is_released(slow_registry: SlowRegistry, made: Made, shelf: Shelf) -> None:
    """What was released before would answer at each new process, although nothing is wrong."""
    old, new = made.regression(1), made.regression(2, version="2.0.0")
    slow_registry.packages.publish(old)
    shelf.release(slow_registry, new, previous=(Version(old.digest, "1.0.0"),))
    slow_registry.packages.open("wine", old.digest)
    slow_registry.packages.slow = new.digest
    threading.Timer(0.1, slow_registry.packages.gate.set).start()
    predictor = Predictor(slow_registry, budget_bytes=10**9, load_budget_seconds=0.01)
    assert values(predictor, records(0)) == [2.0]


def test_a_download_that_each_call_has_a_moment_for_ends(
    *, registry: Registry, line: Line, made: Made, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Lambda at low traffic: between two calls nothing goes on, and no connection lives on."""
    predictor = Predictor(registry, budget_bytes=10**9, load_budget_seconds=0.01)
    shelf.release(registry, made.regression(1))
    predictor.ready("wine")
    noise = np.random.default_rng(0).integers(0, 2**32, 150_000).astype(np.uint32)
    graph = made.graphs.linear([1, 1], 2)
    graph.metadata_props.add(key="noise", value=noise.tobytes().hex())
    new = made.make_package(graph, name="wine", version="2.0.0", features=FEATURES, output=VALUE)
    shelf.release(registry, new)
    key = f"packages/wine/{new.digest}.zip"
    content = line.objects[key] = bytes(obstore.get(registry._store, key).bytes())
    registry.packages._store = line.store()
    monkeypatch.setattr("threefold.sessions.RETRY_SECONDS", 0.0)
    found: list[object] = []
    while not found or found[-1] == 1.0:
        line.left = 100_000
        found += values(predictor, records(0))
        settle(predictor)
        assert len(found) < 50
    assert found[-1] == 2.0
    assert len(found) > len(content) // 100_000
    # None of them began again.
    assert sum(sent for _, _, sent in line.ranges) < len(content) + len(found) * 64 * 1024


def test_a_dead_registry_is_not_asked_by_each_request_that_another_package_answers(
    *, registry: Registry, clock: Clock, made: Made, shelf: Shelf, observed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def away(_store: object, key: str) -> None:
        asked.append(key)
        message = "no answer"
        raise OSError(message)

    predictor = Predictor(registry, budget_bytes=10**9, observe=lambda *what: observed.append(what))
    predictor.sessions._clock = clock
    shelf.release(registry, made.regression(1))
    predictor.ready("wine")
    new = made.regression(2, version="2.0.0")
    shelf.release(registry, new)
    with monkeypatch.context() as patch:
        patch.setattr(obstore, "head", away)
        for _ in range(20):
            assert values(predictor, records(0)) == [1.0]
            assert predictor.key_field("wine") == "id"
        assert asked == [f"packages/wine/{new.digest}.zip"]
        clock.seconds += RETRY_SECONDS
        assert values(predictor, records(0)) == [1.0]
        assert len(asked) == 2
        with pytest.raises(NotServable, match="want the model bucket to answer, got no answer"):
            predictor.ready("wine")
    assert "PackageRefused" not in {metric for metric, _, _ in observed}
    clock.seconds += RETRY_SECONDS
    assert values(predictor, records(0)) == [2.0]
    predictor.ready("wine")


def test_a_package_that_a_full_disk_keeps_out_leaves_the_last_good_one(
    *, store: MemoryStore, registry: Registry, made: Made, shelf: Shelf, tmp_path: Path
) -> None:
    room = [10**12]
    registry.packages = PackageStore(store, cache=tmp_path / "small", baked=tmp_path, free=lambda _: room[0])
    predictor = Predictor(registry, budget_bytes=10**9)
    shelf.release(registry, made.regression(1))
    predictor.ready("wine")
    shelf.release(registry, made.regression(2, version="2.0.0"))
    room[0] = 0
    assert values(predictor, records(0)) == [1.0]
    with pytest.raises(NotServable, match=r"got 1\.0\.0: .* bytes of room on the disk"):
        predictor.ready("wine")


@pytest.mark.parametrize("damage", ["cut short", "another digest", "broken graph", "another example"])
@pytest.mark.parametrize("budget_bytes", [10**9, 1])
def test_whatever_is_wrong_with_a_released_package_the_last_good_one_answers(
    *,
    damage: str,
    budget_bytes: int,
    registry: Registry,
    store: MemoryStore,
    made: Made,
    shelf: Shelf,
    tmp_path: Path,
    observed: list[tuple[str, float, str]],
) -> None:
    predictor = Predictor(registry, budget_bytes=budget_bytes, observe=lambda *what: observed.append(what))
    shelf.release(registry, made.regression(1))
    predictor.ready("wine")
    digest, reason = damaged(damage, store, made, tmp_path)
    document = json.loads(bytes(obstore.get(store, "releases/wine.json").bytes()))
    document["champion"] = {"digest": digest, "version": "2.0.0"}
    obstore.put(store, "releases/wine.json", json.dumps(document).encode())
    registry._forget("wine")
    observed.clear()
    for _ in range(3):
        (found,) = predictor.predict(records(0)).predictions()
        assert (found["value"], found["role"], found["version"]) == (1.0, "fallback", "1.0.0")
        assert predictor.key_field("wine") == "id"
    assert [metric for metric, _, _ in observed].count("PackageRefused") == 3
    with pytest.raises(NotServable, match=reason):
        predictor.ready("wine")


def damaged(damage: str, store: MemoryStore, made: Made, scratch: Path) -> tuple[str, str]:
    """Put a package into the bucket by hand, as no publish would: its digest, and what is wrong with it."""
    package = made.refused() if damage == "another example" else made.regression(5, version="2.0.0")
    if damage == "broken graph":
        # The digest is that of the broken file, so that nothing is wrong but what is in it.
        folder = shutil.copytree(package.folder, scratch / "broken")
        (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-20])
        package = open_package(folder, digest_of(folder))
    content = pack(package.folder)
    digest = "0" * 64 if damage == "another digest" else package.digest
    obstore.put(store, f"packages/wine/{digest}.zip", content[:-50] if damage == "cut short" else content)
    reasons = {
        "cut short": "want a whole zip file",
        "another digest": f"want digest {digest}, got {package.digest}",
        "broken graph": r"model\.onnx: want an ONNX model that ONNX Runtime .* loads",
        "another example": r"examples\.jsonl:1: want value 999",
    }
    return digest, reasons[damage]


def test_a_refused_package_without_another_is_observed_by_whatever_asks_for_it(
    registry: Registry, store: MemoryStore, predictor: Predictor, made: Made, observed: list[tuple[str, float, str]]
) -> None:
    package = made.regression(1)
    publish(registry, Release(model="wine", champion=Version(package.digest, "1.0.0")), package)
    obstore.put(store, f"packages/wine/{package.digest}.zip", b"PK no zip")
    for _ in range(2):
        with pytest.raises(InvalidPackage):
            predictor.key_field("wine")
    assert observed == [("PackageRefused", 1, "wine")] * 2


@pytest.mark.parametrize("budget_bytes", [10**9, 1])
def test_a_promotion_among_requests_of_many_threads_gives_the_old_answer_or_the_new(
    *, budget_bytes: int, registry: Registry, made: Made, shelf: Shelf, clock: Clock, tmp_path: Path
) -> None:
    packages = [made.regression(float(i), version=f"{i}.0.0") for i in range(6)]
    shelf.release(registry, packages[0])
    predictor = Predictor(registry, budget_bytes=budget_bytes, load_budget_seconds=10)
    predictor.ready("wine")
    known = {package.digest: (package.manifest.version, float(i)) for i, package in enumerate(packages)}
    promoter = Registry(registry._store, cache=tmp_path / "promoter", baked=tmp_path / "none", refresh_seconds=0)
    done = threading.Event()
    # What may answer: the champion of before and the one of after the promotion that is under way.
    allowed = [0, 0]

    def ask(_: int) -> int:
        asked = 0
        while not done.is_set():
            earliest = allowed[0]
            found = predictor.predict(records(0, 1, 2)).predictions()
            ((digest, version),) = {(prediction["digest"], prediction["version"]) for prediction in found}
            assert known[digest][0] == version
            value = known[digest][1]
            assert [prediction["value"] for prediction in found] == [value, value + 1, value + 2]
            assert earliest <= value <= allowed[1]
            asked += 1
        return asked

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(ask, i) for i in range(6)]
        try:
            for i, package in enumerate(packages[1:], 1):
                allowed[1] = i
                shelf.release(promoter, package)
                clock.seconds += 31
                time.sleep(0.1)
                # By now each thread has seen the new release at least once.
                assert registry.release("wine").release.champion.digest == package.digest
                allowed[0] = i
        finally:
            done.set()
        assert all(each.result(30) > 5 for each in running)
    predictor.ready("wine")


def test_a_version_that_is_asked_for_is_waited_for(slow_registry: SlowRegistry, made: Made) -> None:
    predictor = Predictor(slow_registry, budget_bytes=10**9, load_budget_seconds=0.01)
    old, champion = made.regression(1), made.regression(2, version="2.0.0")
    release = Release(
        model="wine", champion=Version(champion.digest, "2.0.0"), previous=(Version(old.digest, "1.0.0"),)
    )
    publish(slow_registry, release, old, champion)
    predictor.ready("wine")
    slow_registry.packages.slow = old.digest
    threading.Timer(0.1, slow_registry.packages.gate.set).start()
    found = predictor.predict(records(0, version="1.0.0")).predictions()[0]
    assert (found["value"], found["role"]) == (1.0, "previous")


def test_a_loaded_model_goes_on_without_the_registry(
    *,
    registry: Registry,
    predictor: Predictor,
    made: Made,
    shelf: Shelf,
    clock: Clock,
    dead_store: S3Store,
    observed: list[tuple[str, float, str]],
) -> None:
    shelf.release(registry, made.regression(1))
    predictor.ready("wine")
    registry._store = dead_store
    clock.seconds += 31
    outcomes = predictor.predict(records(0))
    assert outcomes.parts[0].provenance.stale
    assert ("ReleaseStale", 1, "wine") in observed


def test_an_unknown_model_is_observed_by_nobody(
    predictor: Predictor, observed: list[tuple[str, float, str]], dead_store: S3Store, registry: Registry
) -> None:
    for _ in range(2):
        with pytest.raises(UnknownModel):
            predictor.predict(Request(model="no-such", rows=Records([{}])))
    registry._store = dead_store
    with pytest.raises(RegistryUnreachable):
        predictor.predict(Request(model="nor-such", rows=Records([{}])))
    assert observed == []


def test_strings_go_in_and_come_out(
    registry: Registry, predictor: Predictor, graphs: Graphs, make_package: PackageMaker, shelf: Shelf
) -> None:
    graph = graphs.columns(("region", "BYTES", ["n", 1]), ("n", "INT64", ["n", 1]))
    features = (Feature(name="n", type="int64"), Feature(name="region", type="string"))
    shelf.release(registry, make_package(graph, name="wine", features=features, layout="columns"))
    rows: Sequence[dict[str, object]] = [{"n": 2**53 + 1, "region": "süd\U0001f600"}, {"n": 1}, {"n": 2, "region": ""}]
    found = predictor.predict(Request(model="wine", rows=Records(rows))).predictions()
    assert [prediction["status"] for prediction in found] == ["predicted", "rejected", "predicted"]
    tensors = {tensor["name"]: tensor for tensor in found[0]["tensors"]}
    assert tensors["region_out"]["data"] == ["süd\U0001f600"]
    assert list(tensors["n_out"]["data"]) == [2**53 + 1]
    assert found[2]["tensors"][0]["data"] == [""]


def test_memory_holds_when_records_are_routed_to_two_packages_and_one_fits(registry: Registry, made: Made) -> None:
    champion, challenger = made.regression(0.0), made.regression(1000.0, version="2.0.0")
    publish(registry, canary(champion, challenger), champion, challenger)
    predictor = Predictor(registry, budget_bytes=1)
    load, alive, at_once = predictor.sessions._load, [], []

    def counted(name: str, digest: str) -> Model:
        at_once.append(sum(found() is not None for found in alive))
        model = load(name, digest)
        alive.append(weakref.ref(model))
        return model

    predictor.sessions._load = counted
    for _ in range(2):
        found = predictor.predict(records(*[0.0] * 30, keys=[str(i) for i in range(30)])).predictions()
        assert {prediction["value"] for prediction in found} == {0.0, 1000.0}
    assert len(predictor.sessions) == 1
    # None is held by the request that asked for it while the next is loaded.
    assert set(at_once) == {0}


def test_a_package_that_was_missing_and_is_back_is_served(
    registry: Registry, store: MemoryStore, made: Made, shelf: Shelf, clock: Clock
) -> None:
    predictor = Predictor(registry, budget_bytes=10**9)
    predictor.sessions._clock = clock
    shelf.release(registry, made.regression(1))
    predictor.ready("wine")
    new = made.regression(2, version="2.0.0")
    shelf.release(registry, new)
    key = f"packages/wine/{new.digest}.zip"
    content = bytes(obstore.get(store, key).bytes())
    obstore.delete(store, key)
    assert values(predictor, records(0)) == [1.0]
    obstore.put(store, key, content)
    clock.seconds += 6
    assert values(predictor, records(0)) == [2.0]
