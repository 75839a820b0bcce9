"""Runs every benchmark, prints one table and writes benchmarks/results.json."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measure import Row

PATHS: Final = ("sync", "cold", "layers", "stream", "batch", "local")
RESULTS: Final = Path(__file__).with_name("results.json")


def main() -> int:
    """Measure; a missed goal is a row that says so, and no failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("paths", nargs="*", help=f"some of {', '.join(PATHS)}; all, if none is named")
    wanted = parser.parse_args().paths or PATHS
    if unknown := set(wanted) - set(PATHS):
        parser.error(f"want some of {', '.join(PATHS)}, got {', '.join(sorted(unknown))}")
    # A file or a pipe has no width of its own.
    console, progress = Console(width=None if sys.stdout.isatty() else 160), Console(stderr=True)
    started = time.monotonic()
    rows: list[Row] = []
    for path in wanted:
        progress.print(f"measuring {path} …")
        rows += _silently(import_module(f"benchmarks.{path}").measure)
    RESULTS.write_text(json.dumps([row.to_json() for row in rows], indent=1) + "\n", encoding="utf-8")
    console.print(table(rows))
    missed = sum(row.holds is False for row in rows)
    console.print(
        f"{missed} of {sum(row.goal is not None for row in rows)} goals missed · "
        f"{time.monotonic() - started:.0f} s · python {platform.python_version()}, {os.cpu_count()} cores"
    )
    return 0


def table(rows: list[Row]) -> Table:
    """The rows as a person reads them."""
    found = Table("", "ours", "reference", "ratio", "goal", "", box=None)
    for column in found.columns[1:]:
        column.justify = "right"
    for row in rows:
        verdict = {True: "[green]holds[/]", False: "[red]missed[/]", None: ""}[row.holds]
        found.add_row(
            row.name,
            f"{row.value:,.4g} {row.unit}",
            "" if row.reference is None else f"{row.reference:,.4g} {row.unit}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            row.goal or "",
            verdict,
        )
    return found


def _silently(measure: Callable[[], list[Row]]) -> list[Row]:
    """Measure with standard output open, a line a write as on Lambda, but on nothing."""
    with Path(os.devnull).open("w", buffering=1, encoding="utf-8") as nothing, redirect_stdout(nothing):
        return measure()


if __name__ == "__main__":
    sys.exit(main())
