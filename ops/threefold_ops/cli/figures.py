"""Comparisons and measurements as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from threefold_ops.cli.console import out

if TYPE_CHECKING:
    from threefold_ops.evaluation.agreement import Agreement, Spread
    from threefold_ops.evaluation.bench import Bench
    from threefold_ops.evaluation.comparison import Comparison
    from threefold_ops.evaluation.row_set import Row, RowSet

    Line = tuple[str, str, str, str]


def print_comparison(found: Comparison) -> None:
    """Print two packages side by side."""
    for side, name in ((found.a, "a"), (found.b, "b")):
        _say(f"{name}: {side.label}, {side.model} {side.version} ({side.digest[:12]})")
    if found.a.digest == found.b.digest:
        _say("They are the same package.")
    for one in found.sets:
        _print_set(one)
    lines: list[Line] = []
    if speed := found.speed:
        ratio = f"x {speed.single_ratio:.2f}"
        lines.append(("one record, µs", f"{speed.single_us_a:.1f}", f"{speed.single_us_b:.1f}", ratio))
        rates = (speed.rows_per_second_a, speed.rows_per_second_b)
        ratio = f"x {rates[1] / rates[0]:.2f}"
        lines.append((f"rows/s, {speed.batch_rows:,} a call", f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", ratio))
    sizes = (found.a, found.b)
    lines.append(("model, bytes", *(f"{side.model_bytes:,}" for side in sizes), f"x {found.size_ratio:.2f}"))  # type: ignore[arg-type]
    lines.append(("package, bytes", *(f"{side.package_bytes:,}" for side in sizes), ""))  # type: ignore[arg-type]
    _print_table("", lines)


def _print_set(one: RowSet) -> None:
    unreadable = f", {one.unreadable} records that are no rows" if one.unreadable else ""
    lines: list[Line] = [("rejected", str(one.rejected_a), str(one.rejected_b), f"{one.rejected_both} by both")]
    lines += _agreement(one.agreement)
    if one.abstained_a is not None or one.abstained_b is not None:
        lines.append(("abstained", _share(one.abstained_a), _share(one.abstained_b), ""))
    for metric in one.metrics:
        said = metric.problem or ("" if metric.difference is None else f"{metric.difference:+.4g}")
        lines.append((f"{metric.metric}, {metric.rows} rows", _number(metric.a), _number(metric.b), said))
    _print_table(f"{one.name}: {one.rows} rows of {one.source}{unreadable}", lines)
    for flip in one.agreement.flip_table:
        _say(f"  {flip.a} → {flip.b}: {flip.count}")
    _print_rows("differing most", one.differing)
    _print_rows("rejected by one of them", one.rejections)


def _agreement(found: Agreement) -> list[Line]:
    lines: list[Line] = []
    if found.flips is not None and found.flip_share is not None:
        lines.append(("flips", "", "", f"{found.flips} of {found.rows} ({found.flip_share:.2%})"))
    for one in found.classes:
        apart = f"mean {one.mean:.3g}, max {one.max:.3g}"
        lines.append((f"score of {one.name}", _number(one.average_a), _number(one.average_b), apart))
    if found.differences is not None:
        lines.append(("average", _number(found.average_a), _number(found.average_b), ""))
        lines.append(("difference", "", "", _spread(found.differences)))
        if found.relative is not None:
            lines.append(("  in a's standard deviations", "", "", _spread(found.relative)))
    for tensor in found.tensors:
        told = "text" if tensor.max is None else f"mean {_number(tensor.mean)}, max {_number(tensor.max)}"
        lines.append((f"tensor {tensor.name}", "", "", f"{told}; {tensor.unequal} of {found.rows} rows differ"))
    for name, only in (("only in a", found.only_a), ("only in b", found.only_b)):
        if only:
            lines.append((name, "", "", ", ".join(map(str, only))))
    return lines


def print_bench(found: Bench) -> None:
    """Print what a package takes."""
    _say(f"{found.label}, {found.model} {found.version} ({found.digest[:12]}); rows of {found.rows}")
    _say(f"threads: {found.threads}, as of {found.memory_mb} MB; this machine has {found.processors} processors")
    _say(f"load {found.load_ms:.1f} ms, gate {found.gate_ms:.1f} ms")
    table = Table("rows a call", "p50 µs", "p95 µs", "p99 µs", "rows/s", box=None, pad_edge=False)
    for one in found.latencies:
        figures = (one.p50_us, one.p95_us, one.p99_us)
        table.add_row(f"{one.batch:,}", *(f"{value:,.1f}" for value in figures), f"{one.rows_per_second:,.0f}")
    out.print(table)
    memory = found.footprint
    setting = "more than Lambda has" if memory.recommended_mb is None else f"{memory.recommended_mb} MB or more"
    _say(f"memory: {memory.peak_mb:.0f} MB, of which the package {memory.need_mb:.0f} MB; setting: {setting}")
    names = list(dict.fromkeys(name for cost in found.costs for name in cost.services))
    table = Table(found.currency, *(cost.what for cost in found.costs), box=None, pad_edge=False)
    for name in names:
        cells = [cost.services.get(name) for cost in found.costs]
        table.add_row(name.replace("_", " "), *("" if cell is None else f"{cell:.6f}" for cell in cells))
    table.add_row("total", *(f"{cost.total:.6f}" for cost in found.costs))
    out.print(table)
    _say(
        f"An estimate, by the list prices of {found.prices_region} of {found.prices_as_of} at {found.memory_mb} MB, "
        f"{found.architecture}, from times of this machine and {found.assumptions.call_ms:g} ms a call of another "
        f"service; without {found.assumptions.left_out}."
    )


def _print_table(title: str, lines: list[Line]) -> None:
    out.print()
    if title:
        _say(title)
    table = Table("", "a", "b", "b against a", box=None, pad_edge=False)
    for line in lines:
        table.add_row(*line)
    out.print(table)


def _print_rows(title: str, rows: list[Row]) -> None:
    if not rows:
        return
    _say(f"  {title}:")
    for row in rows:
        place = f"line {row.line}" + (f", {row.key}" if row.key else "")
        _say(f"    {place}: {_answer(row.a)} → {_answer(row.b)}")


def _answer(answer: dict[str, Any]) -> str:
    if "label" in answer:
        return str(answer["label"]) + (f" ({answer['score']:.4g})" if "score" in answer else "")
    return ", ".join(f"{name}: {value}" if name != "value" else _number(value) for name, value in answer.items())


def _spread(spread: Spread) -> str:
    parts = {"mean": spread.mean, "median": spread.median, "p95": spread.p95, "max": spread.max}
    return ", ".join(f"{name} {value:.4g}" for name, value in parts.items())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _say(line: str) -> None:
    # Keys and labels are data: a bracket in them is no markup.
    out.print(line, markup=False)
