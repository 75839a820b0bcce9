"""How much memory a package needs, measured in a process of its own: `python -m threefold_ops.evaluation.footprint`."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from threefold.package import open_package
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from threefold.package import Package

ROWS: Final = 4_000
# Half a gigabyte, what a thread has always had, and whole vCPUs up to the most that Lambda gives
# (https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html: 1,769 MB are one vCPU).
SETTINGS: Final = (512, 1024, 1769, 3538, 5307, 7076, 8845, 10_240)
# Requests, the runtime's own, and what a larger batch takes.
HEADROOM: Final = 1.25
_MEGABYTE: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """The memory of a process that loads a package, runs its gate and scores 4,000 rows at once.

    Attributes:
        imports_mb: what the imports of a door take, before anything is loaded.
        peak_mb: the most that the process took.
        need_mb: the difference: what the package needs.
        recommended_mb: the least memory setting that holds two such packages, for one that is promoted is loaded beside
            the one that serves, with a quarter of headroom; None where Lambda has none as large.
    """

    imports_mb: float
    peak_mb: float
    need_mb: float
    recommended_mb: int | None


def measure_footprint(package: Package, *, threads: int) -> Footprint:
    """Measure a package in a process of its own.

    Args:
        package: has rows: a confidence set, examples, or a reference file.
        threads: for one inference call.

    Raises:
        OperatorError: the process failed, and what it said.
    """
    command = [
        sys.executable,
        "-m",
        "threefold_ops.evaluation.footprint",
        str(package.folder),
        package.digest,
        str(threads),
    ]
    # As infra/function.py starts a function.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise OperatorError(f"memory: want a process that loads the package, got: {said}")
    imports, peak = (size / _MEGABYTE for size in json.loads(done.stdout.splitlines()[-1]))
    return Footprint(
        imports_mb=imports, peak_mb=peak, need_mb=peak - imports, recommended_mb=recommended(imports, peak - imports)
    )


def recommended(imports_mb: float, need_mb: float) -> int | None:
    """The least of the settings that holds a door and two packages of such a need, with headroom."""
    wanted = HEADROOM * (imports_mb + 2 * need_mb)
    return next((setting for setting in SETTINGS if setting >= wanted), None)


def _peak_bytes() -> int:
    """The most memory that this process has had so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not getrusage: there Linux counts what the process was before its exec, the parent's memory.
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(folder: str, digest: str, threads: str) -> None:
    """Load, score, and print the memory before and after, in bytes."""
    # What the doors import beside the predictor.
    import boto3  # noqa: F401, PLC0415

    from threefold import telemetry  # noqa: F401, PLC0415
    from threefold_ops.evaluation.trial import Trial  # noqa: PLC0415
    from threefold_ops.evaluation.trial_rows import sample  # noqa: PLC0415

    before = _peak_bytes()
    with tempfile.TemporaryDirectory(prefix="threefold-") as scratch:
        trial = Trial(open_package(Path(folder), digest), None, Path(scratch), threads=int(threads))
        rows = sample(trial.package, ROWS).payloads[0]
        trial.predict(rows.select(np.resize(np.arange(len(rows)), ROWS)))
    sys.stdout.write(json.dumps([before, _peak_bytes()]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
