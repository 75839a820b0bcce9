"""Sets up what a make verb needs, with nothing but the python3 that is there: environments from the hashed locks."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".threefold"
LEAST_PYTHON = (3, 11)
LEAST_NODE = 20
# name: (environment, locks installed into it, whether this project is installed too, what to tell)
ENVIRONMENTS = {
    "ops": (ROOT / ".venv", ["ops"], True, "about 500 MB, mostly the CDK"),
    "dev": (ROOT / ".venv", ["dev"], True, "about 900 MB"),
    "emulator": (STATE / "emulator", ["emulator"], False, "about 60 MB"),
    "bench": (STATE / "bench", ["bench", "uv"], True, "about 700 MB"),
    "peers": (STATE / "peers", ["peers", "uv"], True, "about 700 MB"),
}


class MissingError(Exception):
    """Something that this set-up cannot bring along."""


def main(wanted: list[str]) -> int:
    """Set up the named environments; says each thing that is missing in one line."""
    try:
        check_prerequisites()
        for name in wanted:
            set_up(name)
    except MissingError as error:
        print(f"threefold: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"threefold: {' '.join(map(str, error.cmd[:4]))} … failed: see above", file=sys.stderr)
        return 1
    return 0


def check_prerequisites() -> None:
    """See that Python, its venv module and Node are there."""
    if sys.version_info < LEAST_PYTHON:
        message = f"want Python >= 3.11, got {sys.version.split()[0]}: install a newer python3"
        raise MissingError(message)
    try:
        import ensurepip  # noqa: F401, PLC0415
        import venv  # noqa: F401, PLC0415
    except ImportError as error:
        message = f"want Python's venv module, got none: install it (Debian: apt install python3-venv) [{error}]"
        raise MissingError(message) from error
    node = shutil.which("node")
    if node is None:
        message = "want Node >= 20, got none: install it (the CDK's templates are written by it)"
        raise MissingError(message)
    found = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(found.lstrip("v").split(".")[0]) < LEAST_NODE:
        message = f"want Node >= 20, got {found}: install a newer one"
        raise MissingError(message)


def set_up(name: str) -> None:
    """Make one environment, unless it stands already as the locks say."""
    folder, locks, project, size = ENVIRONMENTS[name]
    stamp = folder / f".{name}.stamp"
    # What is set up for development serves the operator too.
    satisfying = [name, "dev"] if project else [name]
    if any(_stands(folder / f".{other}.stamp", other) for other in satisfying):
        return
    started = time.monotonic()
    print(f"setting up {folder.relative_to(ROOT)} for {name} ({size}) …", flush=True)
    if not (folder / "bin" / "python").exists():
        _run(sys.executable, "-m", "venv", "--clear", folder)
    python = folder / "bin" / "python"
    uv = ROOT / ".venv" / "bin" / "uv"
    if not uv.exists():
        if not (ROOT / ".venv" / "bin" / "python").exists():
            _run(sys.executable, "-m", "venv", ROOT / ".venv")
        pip = [ROOT / ".venv" / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run(*pip, "--require-hashes", "-r", ROOT / "requirements" / "uv.txt")
    for lock in locks:
        _run(uv, "pip", "install", "--python", python, "--require-hashes", "-r", ROOT / "requirements" / f"{lock}.txt")
    if project:
        _run(uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "--no-build-isolation", "-e", ROOT)
    stamp.write_text(_digest(name))
    print(f"set up {folder.relative_to(ROOT)} in {time.monotonic() - started:.0f} s", flush=True)


def _stands(stamp: Path, name: str) -> bool:
    return stamp.is_file() and stamp.read_text() == _digest(name)


def _digest(name: str) -> str:
    files = [ROOT / "requirements" / f"{lock}.txt" for lock in ENVIRONMENTS[name][1]] + [ROOT / "pyproject.toml"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files) + sys.version.encode()).hexdigest()


def _run(*command: object) -> None:
    environment = os.environ | {"VIRTUAL_ENV": "", "UV_PYTHON_DOWNLOADS": "never", "UV_NO_CONFIG": "1"}
    subprocess.run([str(part) for part in command], check=True, env=environment, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
