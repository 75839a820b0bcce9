"""The gate: what a package must pass to be served, at publish, at promotion, and wherever it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threefold.model import Model


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a package.

    Attributes:
        file: the file of the package that it is about.
        message: what, wanted, got.
        line: the line of the file, from 1; None where it is about the file as a whole.
    """

    file: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        """As a compiler would say it."""
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the gate saw.

    Attributes:
        findings: all that is wrong; a package without any may be served.
        examples: how many end-to-end examples were run.
        rows: how many rows of the confidence set were scored; fewer than it has when the time ran out.
        value: the metric on the whole confidence set; None where there is none, or no time for all of it.
        latency_ms: the median time of one record; None without examples.
        complete: whether everything was run, or the time ran out first.
    """

    findings: list[Finding] = field(default_factory=list)
    examples: int = 0
    rows: int = 0
    value: float | None = None
    latency_ms: float | None = None
    complete: bool = True


def inspect(model: Model, *, seconds: float | None = None) -> Report:
    """Run the gate of a loaded package.

    Args:
        model: as `Model` loaded it, its signature compared with the graph already.
        seconds: stop beginning new checks after so long; None runs all. The examples in one call always run.

    Returns:
        All that is wrong, and the figures.
    """
    raise NotImplementedError


def admit(model: Model, *, seconds: float | None = None) -> Report:
    """Run the gate and refuse what it finds wrong.

    Raises:
        InvalidPackage: the package must not be served; the message names the first findings.
    """
    raise NotImplementedError
