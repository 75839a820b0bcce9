"""The two layers: third-party wheels for the functions' interpreter, and the code with its champions."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from threefold.names import Prefix
from threefold_ops.errors import OperatorError
from threefold_ops.paths import BASE_PYTHON, REQUIREMENTS, ROOT, UV

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from threefold.package import Package
    from threefold.release import Release

LAMBDA_PYTHON: Final = "3.13"
# onnxruntime's wheels are manylinux_2_28, which Amazon Linux 2023 satisfies.
_PLATFORMS: Final = {"x86_64": "x86_64-manylinux_2_28", "arm64": "aarch64-manylinux_2_28"}
# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html: code and layers, unzipped, at most 250 MB.
_BOTOCORE_SERVICES: Final = frozenset({"dynamodb", "s3", "sqs", "stepfunctions", "sts", "events", "sns"})
# What no function imports, measured in megabytes: tools to make and convert models, tests, headers, stubs, parts of
# numpy that nothing here computes with, a web page, pydantic's former version.
_UNUSED: Final = (
    "onnxruntime/transformers",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/datasets",
    "onnxruntime/backend",
    "google",
    "flatbuffers",
    "bin",
    "numpy/f2py",
    "numpy/_core/include",
    "numpy/_core/lib",
    "numpy/fft",
    "numpy/polynomial",
    "numpy/random",
    "numpy/testing",
    "aws_lambda_powertools/event_handler/openapi/swagger_ui",
    "packaging",
    "pydantic/v1",
)
_UNUSED_PATTERNS: Final = (
    "**/tests",
    "**/*.pyi",
    "**/*.pxd",
    "**/*.h",
    "protobuf-*.dist-info",
    "flatbuffers-*.dist-info",
    "packaging-*.dist-info",
)
CODE: Final = ROOT / "layers" / "model" / "python" / "threefold"


@dataclass(frozen=True, slots=True)
class Runtime:
    """The interpreter and the machine that a layer is for.

    Attributes:
        python: major and minor version.
        architecture: x86_64 or arm64; None for this machine's own interpreter and platform.
    """

    python: str
    architecture: str | None = None

    @property
    def label(self) -> str:
        """A folder's name for it."""
        return f"python{self.python}-{self.architecture or 'host'}"


HOST: Final = Runtime(f"{sys.version_info.major}.{sys.version_info.minor}")


def lambda_runtime(architecture: str) -> Runtime:
    """The runtime of AWS Lambda."""
    return Runtime(LAMBDA_PYTHON, architecture)


def build_runtime_layer(state: Path, runtime: Runtime, progress: Callable[[str], None] = lambda _: None) -> Path:
    """Install the locked wheels into a layer's folder, pruned and precompiled; a folder that stands is used again.

    Returns:
        The folder, which holds `python/`.

    Raises:
        OperatorError: a wheel cannot be had for that runtime.
    """
    lock = REQUIREMENTS / "runtime.txt"
    interpreter = find_interpreter(runtime.python)
    recipe = [lock.read_text(), runtime.label, platform.platform(), interpreter is not None]
    recipe += [sorted(_BOTOCORE_SERVICES), _UNUSED, _UNUSED_PATTERNS]
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    folder = state / "layers" / f"runtime-{runtime.label}-{digest}"
    if folder.is_dir():
        return folder
    progress(f"building the runtime layer for {runtime.label}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".runtime-", dir=folder.parent))
    try:
        python = staging / "python"
        command = [
            UV,
            "pip",
            "install",
            "--quiet",
            "--link-mode",
            "copy",
            "--target",
            python,
            "--require-hashes",
            "-r",
            lock,
        ]
        if runtime.architecture is None:
            command += ["--python", BASE_PYTHON]
        else:
            command += ["--python-version", runtime.python, "--python-platform", _PLATFORMS[runtime.architecture]]
            command += ["--only-binary", ":all:"]
        _run(command)
        _prune(python)
        if interpreter is None:
            progress(
                f"no python{runtime.python} here: the layer goes without bytecode, and each cold start compiles it"
            )
        else:
            compile_folder(python, interpreter)
        staging.chmod(0o755)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def zip_runtime_layer(folder: Path) -> Path:
    """The zip of a runtime layer's folder, made once and kept beside it."""
    path = folder.parent / f"{folder.name}.zip"
    if not path.is_file():
        with tempfile.TemporaryDirectory(prefix=".zip-", dir=folder.parent) as scratch:
            staged = Path(scratch) / "layer.zip"
            _zip(folder, staged, folder.name)
            staged.rename(path)
    return path


@dataclass(frozen=True, slots=True)
class ModelLayer:
    """The model layer's zip.

    Attributes:
        digest: of what is inside, whatever the zip's bytes.
    """

    path: Path
    digest: str

    @property
    def key(self) -> str:
        """Its place in the model bucket."""
        return f"{Prefix.MODEL_LAYER}{self.digest}.zip"


def build_model_layer(
    state: Path, runtime: Runtime, champions: Iterable[tuple[Release, Package]], *, code: Path = CODE
) -> ModelLayer:
    """Zip the code and the champions that may be baked.

    Args:
        state: a folder for the zip.
        runtime: whose bytecode goes with the code.
        champions: every model's release with its champion's package.
        code: the `threefold` package.

    Returns:
        The zip and its content digest: of the sorted list of [path, SHA-256], the bytecode's interpreter with it.
    """
    files: dict[str, bytes] = {
        f"python/threefold/{path.relative_to(code).as_posix()}": path.read_bytes()
        for path in code.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for release, package in champions:
        if package.manifest.bake:
            files[f"{Prefix.RELEASES}{release.model}.json"] = json.dumps(release.to_json(), indent=1).encode()
            for path in package.folder.iterdir():
                files[f"{Prefix.PACKAGES}{package.digest}/{path.name}"] = path.read_bytes()
    interpreter = find_interpreter(runtime.python)
    digest = layer_digest(files, runtime.python if interpreter else None)
    path = state / "layers" / f"model-{digest}.zip"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".model-", dir=path.parent) as scratch:
            root = Path(scratch) / "content"
            for name, content in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(content)
            if interpreter is not None:
                compile_folder(root / "python", interpreter)
            staged = Path(scratch) / "layer.zip"
            _zip(root, staged, digest)
            staged.rename(path)
    return ModelLayer(path, digest)


def layer_digest(files: dict[str, bytes], bytecode: str | None) -> str:
    """The identity of a model layer's content."""
    entries: list[Any] = sorted([name, hashlib.sha256(content).hexdigest()] for name, content in files.items())
    return hashlib.sha256(json.dumps([entries, bytecode], separators=(",", ":")).encode()).hexdigest()


def read_layer_digest(path: Path) -> str:
    """The content digest of a model layer's zip, computed again from what is inside."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if "__pycache__" not in name]
        compiled = next((name for name in archive.namelist() if name.endswith(".pyc")), None)
        version = None if compiled is None else compiled.rsplit(".", 2)[1].removeprefix("cpython-")
        bytecode = None if version is None else f"{version[0]}.{version[1:]}"
        return layer_digest({name: archive.read(name) for name in names}, bytecode)


def find_interpreter(version: str) -> Path | None:
    """An interpreter of a version: its bytecode is the only one that a function of that version can use."""
    if version == HOST.python:
        return BASE_PYTHON
    candidates = [shutil.which(f"python{version}")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates += [str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/python{version}"))]
    for candidate in candidates:
        if candidate is not None:
            found = subprocess.run(
                [candidate, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, check=False
            )
            if found.stdout.decode().strip() == str(tuple(int(part) for part in version.split("."))):
                return Path(candidate)
    return None


def compile_folder(folder: Path, interpreter: Path) -> None:
    """Write bytecode that is never checked against its source: a zip changes the times that others go by."""
    _run([interpreter, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash", folder])


def _zip(root: Path, target: Path, comment: str) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = comment.encode()
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(root).as_posix(), (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)


def _prune(python: Path) -> None:
    for name in _UNUSED:
        shutil.rmtree(python / name, ignore_errors=True)
    for pattern in _UNUSED_PATTERNS:
        for path in sorted(python.glob(pattern), reverse=True):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for data in (python / "botocore" / "data", python / "boto3" / "data"):
        for path in data.iterdir():
            if path.is_dir() and path.name not in _BOTOCORE_SERVICES:
                shutil.rmtree(path)
    # onnxruntime's Python module has the library linked in; the copy beside it is for C programs.
    for path in (python / "onnxruntime" / "capi").glob("libonnxruntime.so*"):
        path.unlink()


def _run(command: list[Any]) -> None:
    environment = {**os.environ, "UV_NO_CONFIG": "1", "UV_PYTHON_DOWNLOADS": "never"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        message = f"{Path(str(command[0])).name} {' '.join(map(str, command[1:3]))}: {done.stderr.strip()[-2000:]}"
        raise OperatorError(message)
