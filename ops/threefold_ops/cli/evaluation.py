"""The verbs that weigh packages before a promotion: compare two, and time one."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from threefold_ops.cli.choice import Aws, Region, Stage, choose
from threefold_ops.cli.console import Json, app, err, print_json
from threefold_ops.cli.figures import print_bench, print_comparison
from threefold_ops.evaluation import bench as measuring
from threefold_ops.evaluation import comparison
from threefold_ops.evaluation.costs import PRICES, read_prices
from threefold_ops.evaluation.limits import Limits, check, passed_over
from threefold_ops.evaluation.side_by_side import write_rows
from threefold_ops.figures import to_document
from threefold_ops.registry.reference import resolve
from threefold_ops.system import find_model_bucket, open_registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from threefold.registry import Registry

# What a script goes by: the comparison was made, and shows more than it may.
PASSED_OVER = 3

Limit = float | None
Seconds = Annotated[float, typer.Option(min=0, help="How long to measure each figure of speed.")]


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="<model>, its champion; <model>@<version>; or a model folder.")],
    b: Annotated[str, typer.Argument(help="The same for what may come in its place.")],
    *,
    data: Annotated[
        Path | None, typer.Option("--data", help="A CSV of rows to ask both, beside their confidence sets.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="How many of the rows that differ most to show.")] = 5,
    per_row: Annotated[
        Path | None, typer.Option("--per-row", help="Write every row's answers side by side into this CSV.")
    ] = None,
    max_flips: Annotated[Limit, typer.Option(min=0, help="Share of rows whose label may change.")] = None,
    max_mean_difference: Annotated[
        Limit, typer.Option(min=0, help="Mean absolute difference of the values, or of the scores.")
    ] = None,
    max_metric_drop: Annotated[Limit, typer.Option(help="By how much a metric may become worse.")] = None,
    max_rejections: Annotated[Limit, typer.Option(min=0, help="Share of a's rows that b may reject.")] = None,
    max_latency_ratio: Annotated[Limit, typer.Option(min=0, help="Time of one record, b over a.")] = None,
    max_size_ratio: Annotated[Limit, typer.Option(min=0, help="Size of the model on disk, b over a.")] = None,
    seconds: Seconds = 2.0,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Say what would change if b answered in the place of a; exit code 3 where it is more than a limit allows.

    Both are asked the rows of their confidence sets and of --data, as the doors would ask them. --json prints
    {kind, a, b, size_ratio, sets, speed, passed_over}: `sets` has what they said of each set of rows (rejections,
    agreement, abstentions, metrics, the rows that differ most), `speed` both of them called in turns, and
    `passed_over` a line for each limit that is not kept.
    """
    limits = Limits(
        flips=max_flips,
        mean_difference=max_mean_difference,
        metric_drop=max_metric_drop,
        rejections=max_rejections,
        latency_ratio=max_latency_ratio,
        size_ratio=max_size_ratio,
    )
    with tempfile.TemporaryDirectory(prefix="threefold-") as scratch:
        folder = Path(scratch)
        registry = _opener(folder, aws=aws, stage=stage, region=region)
        first, second = (resolve(text, registry, folder / name) for text, name in ((a, "a"), (b, "b")))
        comparison.check(first, second)
        check(limits, first.package.manifest.output.kind)
        found = comparison.compare(first, second, data=data, scratch=folder, show=show, seconds=seconds)
        if per_row is not None:
            write_rows(per_row, found.sets, (first.package.manifest, second.package.manifest))
    over = passed_over(found, limits)
    if as_json:
        print_json({**to_document(found), "passed_over": over})
    else:
        print_comparison(found)
    for line in over:
        err.print(f"passed over: {line}", markup=False)
    if over:
        raise typer.Exit(PASSED_OVER)


@app.command()
def bench(
    reference: Annotated[str, typer.Argument(help="<model>, its champion; <model>@<version>; or a model folder.")],
    *,
    memory: Annotated[int, typer.Option(min=128, max=10_240, help="A function's memory in MB.")] = 1769,
    architecture: Annotated[Literal["x86_64", "arm64"], typer.Option(help="For the price.")] = "x86_64",
    prices: Annotated[Path, typer.Option(help="A price list, in the form of the one that is built in.")] = PRICES,
    seconds: Seconds = 1.0,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Measure what a package takes: time by batch size, memory, and what its predictions would cost on AWS.

    Times are of this machine, through the predictor that all doors have. Costs are an estimate from them: below
    1,769 MB, Lambda gives a share of a processor in proportion. --json prints {label, model, version, digest, rows,
    path, memory_mb, architecture, threads, processors, load_ms, gate_ms, latencies, footprint, work, costs,
    assumptions, prices_as_of, prices_region, currency}.
    """
    price_list = read_prices(prices)
    with tempfile.TemporaryDirectory(prefix="threefold-") as scratch:
        folder = Path(scratch)
        found = resolve(reference, _opener(folder, aws=aws, stage=stage, region=region), folder / "package")
        measured = measuring.bench(
            found,
            price_list,
            memory=memory,
            architecture=architecture,
            scratch=folder,
            seconds=seconds,
            progress=lambda line: None if as_json else err.print(f"measuring {line}", markup=False),
        )
    if as_json:
        print_json(to_document(measured))
    else:
        print_bench(measured)


def _opener(scratch: Path, *, aws: bool, stage: str, region: str | None) -> Callable[[], Registry]:
    """Opens the registry once, when a reference first needs it: two folders are compared without a system."""

    @functools.cache
    def registry() -> Registry:
        choice = choose(aws=aws, stage=stage, region=region)
        return open_registry(choice.target, find_model_bucket(choice.target, choice.stage), scratch / "packages-cache")

    return registry
