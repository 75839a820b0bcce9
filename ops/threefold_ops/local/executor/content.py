"""Unpacks code and layers, each content once, and lays out what Lambda's own runtime brings along."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import shutil
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Final

# What /var/runtime holds on Lambda: the runtime client and the AWS SDK, with all that they import.
RUNTIME_DISTRIBUTIONS: Final = (
    "awslambdaric",
    "simplejson",
    "snapshot-restore-py",
    "boto3",
    "botocore",
    "jmespath",
    "python-dateutil",
    "s3transfer",
    "six",
    "urllib3",
)


def lay_out_runtime(folder: Path) -> Path:
    """Link the runtime client and the SDK, and nothing else of this interpreter's packages, into a folder."""
    folder.mkdir(parents=True)
    for name in RUNTIME_DISTRIBUTIONS:
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or ()}
        for top in sorted(tops - {"..", "__pycache__"}):
            if not top.endswith(".dist-info"):
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    return folder


class ContentStore:
    """Folders named by the digest of the zip they came from, shared by every environment."""

    def __init__(self, root: Path) -> None:
        """Keep the folders under `root`, which is created."""
        self._root = root
        self._root.mkdir(parents=True)
        self._lock = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}
        self._digests: dict[str, tuple[bytes, str]] = {}

    def unpack(self, name: str, archive: bytes) -> Path:
        """Return the folder with the archive's files; `name` only saves digesting the same bytes again."""
        digest = self._digest(name, archive)
        folder = self._root / digest
        with self._lock:
            busy = self._busy.setdefault(digest, threading.Lock())
        with busy:
            if not folder.exists():
                partial = Path(tempfile.mkdtemp(prefix="partial-", dir=self._root))
                try:
                    _extract(archive, partial)
                    partial.chmod(0o755)
                    partial.rename(folder)
                except BaseException:
                    shutil.rmtree(partial, ignore_errors=True)
                    raise
        return folder

    def _digest(self, name: str, archive: bytes) -> str:
        known = self._digests.get(name)
        if known is None or known[0] is not archive:
            known = (archive, hashlib.sha256(archive).hexdigest())
            self._digests[name] = known
        return known[1]


def _extract(archive: bytes, folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(archive)) as bundle:
        for info in bundle.infolist():
            target = bundle.extract(info, folder)
            # zipfile drops the permission bits that Lambda keeps; 0 means that the zip never had any.
            mode = (info.external_attr >> 16) & 0o777
            if mode and not info.is_dir():
                Path(target).chmod(mode | 0o600)
