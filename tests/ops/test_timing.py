"""What one package takes: its time, its memory, and what its predictions cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

import numpy as np
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from threefold.package import Output
from threefold.signature import Feature
from threefold_ops.cli import load
from threefold_ops.errors import OperatorError
from threefold_ops.evaluation import bench as measuring
from threefold_ops.evaluation.costs import PRICES, Tariff, batch_cost, https_cost, read_prices, stream_cost
from threefold_ops.evaluation.footprint import measure_footprint, recommended
from threefold_ops.evaluation.rehearsal import BatchWork, Work, item_bytes
from threefold_ops.evaluation.timing import MOST_ROUNDS, interleave, measure
from threefold_ops.figures import to_document
from threefold_ops.registry.reference import Found, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Graphs, PackageMaker

ROOT = Path(__file__).resolve().parents[2]
WORK = Work(
    https_ms=1.0,
    stream_ms=20.0,
    request_bytes=1_000,
    response_bytes=500,
    message_bytes=1_000,
    outcome_bytes=500,
    item_bytes=400,
    batch=BatchWork(row_us=100.0, plan_row_us=1.0, row_bytes=100, result_bytes=200),
)


class Clock:
    """Seconds that go on by what an act takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def act(self, *seconds: float) -> Callable[[int], None]:
        """An act that takes so long, one call after the other."""

        def run(i: int) -> None:
            self.now += seconds[i % len(seconds)]

        return run


def nobody() -> Never:
    pytest.fail("the registry was opened, and a folder needs none")


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_a_latency_is_of_all_calls_but_the_first() -> None:
    clock = Clock()
    found = measure(clock.act(*[0.001] * 98, 0.1, 0.2), batch=10, seconds=0.39, clock=clock)
    # 98 calls of 1 ms and one each of 100 ms and 200 ms; then the time is over.
    assert (found.batch, found.calls) == (10, 100)
    assert found.p50_us == pytest.approx(1_000)
    assert found.p95_us == pytest.approx(1_000)
    assert found.p99_us == pytest.approx(np.quantile([1e3] * 98 + [1e5, 2e5], 0.99))
    assert found.rows_per_second == pytest.approx(10_000)


def test_a_slow_act_is_called_a_few_times_and_a_fast_one_not_forever() -> None:
    clock = Clock()
    assert measure(clock.act(60.0), batch=1, seconds=1.0, clock=clock, least=3).calls == 3
    assert measure(clock.act(0.0, 1e-9), batch=1, seconds=1.0, clock=clock).calls == MOST_ROUNDS


def test_acts_are_called_in_turns_and_each_goes_first() -> None:
    clock, order = Clock(), []

    def act(name: str, seconds: float) -> Callable[[int], None]:
        def run(i: int) -> None:
            order.append((name, i))
            clock.now += seconds

        return run

    assert interleave([act("a", 1.0), act("b", 3.0)], seconds=0, clock=clock, least=2) == [1.0, 3.0]
    # Once each before, untimed.
    assert order == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("b", 1), ("a", 1)]


def test_the_price_list_names_its_day_its_region_and_amazons_own_pages() -> None:
    prices = read_prices()
    assert (prices.region, prices.currency) == ("us-east-1", "USD")
    assert prices.as_of.isoformat() >= "2026-11-21"
    lines = json.loads(PRICES.read_text())["values"]
    for name, line in lines.items():
        assert line["source"].startswith(("https://aws.amazon.com/", "https://docs.aws.amazon.com/")), name
        assert line["verified"], name
        assert line["price"] > 0, name


def test_another_regions_prices_are_checked_for_their_form(tmp_path: Path) -> None:
    document = json.loads(PRICES.read_text())
    path = tmp_path / "prices.json"
    path.write_text(json.dumps(document | {"region": "eu-central-1"}))
    assert read_prices(path).region == "eu-central-1"
    del document["values"]["sqs_requests"]
    document["values"]["s3_puts"]["price"] = -1
    path.write_text(json.dumps(document))
    with pytest.raises(OperatorError, match=r"values\.sqs_requests: Field required\n.*values\.s3_puts\.price: "):
        read_prices(path)
    with pytest.raises(OperatorError, match=r"nothere\.json: want a file that can be read"):
        read_prices(tmp_path / "nothere.json")


def test_a_thousand_calls_cost_what_a_calculator_says() -> None:
    cost = https_cost(Tariff(read_prices(), 1769, "x86_64"), WORK)
    # 1 ms and 0.23 ms of the runtime client are billed as 2 ms.
    assert (cost.billed_ms, cost.invocations) == (2, 1000)
    assert cost.services == pytest.approx(
        {"lambda_duration": 2.0 * 1769 / 1024 * 0.0000166667, "lambda_requests": 0.0002, "api_gateway": 0.001}
    )
    assert cost.total == pytest.approx(0.0012575848)


def test_less_memory_is_a_share_of_a_processor() -> None:
    # 1.23 ms at 512 / 1769 of a processor are 4.25 ms.
    cost = https_cost(Tariff(read_prices(), 512, "arm64"), WORK)
    assert cost.billed_ms == 5
    assert cost.services["lambda_duration"] == pytest.approx(5 * 0.5 * 0.0000133334)
    # More than a whole one makes one call no faster: what threads gain was measured.
    assert https_cost(Tariff(read_prices(), 3538, "x86_64"), WORK).billed_ms == 2


def test_a_large_call_is_metered_by_its_size() -> None:
    large = Work(**{**_fields(WORK), "response_bytes": 512 * 1024 + 1})
    assert https_cost(Tariff(read_prices(), 1769, "x86_64"), large).services["api_gateway"] == pytest.approx(0.002)


def test_a_thousand_messages_cost_what_a_calculator_says() -> None:
    tariff = Tariff(read_prices(), 1769, "x86_64")
    cost = stream_cost(tariff, WORK)
    # 20.23 ms of work, one round of four writes, two rounds of eight sends: 10 ms each.
    assert (cost.billed_ms, cost.invocations) == (51, 10)
    assert cost.services == pytest.approx(
        {
            "lambda_duration": 0.51 * 1769 / 1024 * 0.0000166667,
            "lambda_requests": 0.000002,
            # 100 calls each to send, receive and delete, on two queues.
            "sqs": 600 * 0.4 / 1e6,
            "dynamodb": 1000 * 0.625 / 1e6,
        }
    )
    large = Work(**{**_fields(WORK), "message_bytes": 10_000, "item_bytes": 1025})
    services = stream_cost(tariff, large).services
    # Ten of them are two times 64 KB to send and to receive; an item beyond 1 KB is two units.
    assert services["sqs"] == pytest.approx(800 * 0.4 / 1e6)
    assert services["dynamodb"] == pytest.approx(2000 * 0.625 / 1e6)


def test_a_million_rows_cost_what_a_calculator_says() -> None:
    assert WORK.batch is not None
    cost = batch_cost(Tariff(read_prices(), 1769, "x86_64"), WORK, WORK.batch)
    # 20 chunks of 50,000 rows: 5,000 ms of work, 500 rounds of four writes, and 10.4 calls of S3; a plan, a finish.
    assert (cost.billed_ms, cost.invocations) == (10_105, 22)
    assert cost.services == pytest.approx(
        {
            "lambda_duration": (20 * 10.105 + 1.121 + 0.281) * 1769 / 1024 * 0.0000166667,
            "lambda_requests": 22 * 0.2 / 1e6,
            "dynamodb": (1_000_000 + 8 + 20 * 2) * 0.625 / 1e6,
            "s3": (8 + 20 * 7) * 0.005 / 1e3 + (4 + 20 * 3) * 0.0004 / 1e3,
            "step_functions": (4 + 20 * 4) * 0.025 / 1e3,
        }
    )
    assert cost.total == pytest.approx(sum(cost.services.values()))


def test_an_item_is_as_large_as_dynamodb_says() -> None:
    item = {
        "pk": {"S": "wine#é"},  # 2 + 7
        "n": {"N": "-12.345"},  # 1 + 1 + 3
        "ok": {"BOOL": True},  # 2 + 1
        "no": {"NULL": True},  # 2 + 1
        "l": {"L": [{"S": "ab"}, {"N": "7"}]},  # 1 + 3 + (1 + 2) + (1 + 2)
        "m": {"M": {"k": {"S": "v"}}},  # 1 + 3 + (1 + 1 + 1)
    }
    assert item_bytes(item) == 9 + 5 + 3 + 3 + 10 + 7


@pytest.mark.parametrize(
    ("imports", "need", "setting"), [(70, 20, 512), (70, 170, 1024), (100, 600, 1769), (70, 4500, None)]
)
def test_the_setting_holds_the_champion_and_its_successor(imports: float, need: float, setting: int | None) -> None:
    assert recommended(imports, need) == setting


def test_a_package_needs_the_memory_of_its_weights(graphs: Graphs, make_package: PackageMaker) -> None:
    megabytes = 48
    small = make_package(
        graphs.linear([1.0]),
        features=[Feature(name="a", type="float32")],
        output=Output(kind="regression", value="value"),
        examples=[{"record": {"a": 1}, "expect": {"value": 1}}],
    )
    weights = np.full((megabytes * 1024 * 1024 // 4, 1), 1e-9, np.float32)
    nodes = [
        helper.make_node("Gather", ["w", "zero"], ["row"], axis=0),
        helper.make_node("Mul", ["x", "row"], ["value"]),
    ]
    constants = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([0], np.int64), "zero")]
    large = make_package(
        graphs.make(nodes, [("x", "FP32", ["n", 1])], [("value", "FP32", ["n", 1])], constants),
        features=[Feature(name="a", type="float32")],
        output=Output(kind="regression", value="value"),
        examples=[{"record": {"a": 1}, "expect": {"value": 1e-9}}],
    )
    of_small, of_large = (measure_footprint(package, threads=1) for package in (small, large))
    # The same imports, and not what this process has grown to.
    assert 20 < of_small.imports_mb < 200
    assert of_small.imports_mb == pytest.approx(of_large.imports_mb, rel=0.1)
    assert of_small.need_mb < megabytes
    assert of_large.need_mb - of_small.need_mb > 0.9 * megabytes
    assert of_large.peak_mb == pytest.approx(of_large.imports_mb + of_large.need_mb)


def test_a_process_that_cannot_load_the_package_says_why(graphs: Graphs, make_package: PackageMaker) -> None:
    package = make_package(graphs.linear([1.0]), output=Output(kind="regression", value="value"))
    with pytest.raises(OperatorError, match=r"memory: want a process that loads the package, got: .*gate\.examples"):
        measure_footprint(package, threads=1)


@pytest.mark.parametrize(("model", "costs"), [("digits", 3), ("digit-pairs", 2)])
def test_a_bench_has_all_its_figures(model: str, costs: int, tmp_path: Path) -> None:
    found = resolve(str(ROOT / "models" / model), nobody, tmp_path / "package")
    scratch = tmp_path / "bench"
    bench = measuring.bench(
        found, read_prices(), memory=3600, architecture="arm64", scratch=scratch, seconds=0.01, progress=lambda _: None
    )
    assert bench.threads == 2
    assert [one.batch for one in bench.latencies] == [1, 10, 100, 1000, 4000]
    assert all(one.p50_us <= one.p95_us <= one.p99_us for one in bench.latencies)
    assert bench.latencies[-1].rows_per_second > bench.latencies[0].rows_per_second
    assert bench.load_ms > 0
    assert bench.gate_ms > 0
    assert len(bench.costs) == costs
    assert bench.work.https_ms < bench.work.stream_ms
    assert bench.work.item_bytes > 100
    assert (bench.work.batch is None) == (model == "digit-pairs")
    document = strict(json.dumps(to_document(bench), allow_nan=False))
    assert document["assumptions"]["call_ms"] == 10
    assert document["footprint"]["recommended_mb"] == 512


def test_a_package_without_any_rows_says_which_it_wants(
    graphs: Graphs, make_package: PackageMaker, tmp_path: Path
) -> None:
    package = make_package(
        graphs.linear([1.0]),
        features=[Feature(name="a", type="float32")],
        output=Output(kind="regression", value="value"),
    )
    with pytest.raises(OperatorError, match=r"want rows in gate\.confidence, gate\.examples or drift\.reference"):
        measuring.bench(
            Found(package, "a", None), read_prices(), memory=1769, architecture="x86_64", scratch=tmp_path, seconds=0
        )


def test_batches_that_would_take_too_long_are_left_out(
    graphs: Graphs, make_package: PackageMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_LONGEST_CALL_SECONDS", 0.0)
    found = resolve(str(ROOT / "models" / "diabetes"), nobody, tmp_path / "package")
    bench = measuring.bench(
        found, read_prices(), memory=1769, architecture="x86_64", scratch=tmp_path / "bench", seconds=0
    )
    assert [one.batch for one in bench.latencies] == [1]


def test_the_verb_speaks_strict_json_and_takes_other_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "BATCHES", (1, 10))
    document = json.loads(PRICES.read_text())
    document["region"], document["values"]["http_api_requests"]["price"] = "eu-west-1", 5.0
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps(document))
    folder = str(ROOT / "models" / "diabetes")
    quick = ["bench", folder, "--seconds", "0.01"]
    done = CliRunner().invoke(load(), [*quick, "--json", "--prices", str(prices), "--memory", "1024"])
    assert done.exit_code == 0, done.exception
    found = strict(done.stdout)
    assert done.stderr == ""
    assert (found["prices_region"], found["memory_mb"], found["threads"]) == ("eu-west-1", 1024, 1)
    assert found["costs"][0]["services"]["api_gateway"] == pytest.approx(0.005)
    assert [one["batch"] for one in found["latencies"]] == [1, 10]
    people = CliRunner().invoke(load(), quick)
    assert "us-east-1" in people.stdout
    assert "measuring latency" in people.stderr


def _fields(work: Work) -> dict[str, Any]:
    return {name: getattr(work, name) for name in Work.__dataclass_fields__}
