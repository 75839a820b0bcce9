"""The model package: its manifest, its digest, and the way into a zip and out of it again."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from threefold.errors import InvalidManifest, InvalidPackage, NotServable, shown
from threefold.release import check_schema
from threefold.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Mapping

# Of a manifest with features that we look up: an older function must not take them from whoever calls. All others are
# written as the schema before, which every function reads.
SCHEMA: Final = 2
PLAIN_SCHEMA: Final = 1
MANIFEST: Final = "manifest.json"
MODEL: Final = "model.onnx"
# A package is a flat folder of data files: nothing to traverse, nothing to run.
FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAXIMUM_FILES: Final = 16
# Lambda's /tmp is 512 MB unless it is made larger, and a package must fit beside its zip.
MAXIMUM_BYTES: Final = 2 * 1024**3
# Weights and CSVs deflate by less than 20; a bomb by 1,000.
MAXIMUM_RATIO: Final = 200
_RATIO_FREE_BYTES: Final = 1024**2
# PKWARE's APPNOTE.TXT, 4.3.7: what stands before a file's name and its data.
_LOCAL_HEADER_BYTES: Final = 30
_METHODS: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})

Kind = Literal["classification", "regression", "tensors"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Which output tensors mean what.

    Attributes:
        label: the output that holds the predicted class, of a classification.
        scores: the output that holds a score per class, shape [n, classes].
        value: the output that holds the predicted value, of a regression.
        classes: the classes in the order of `scores`.
    """

    kind: Kind
    label: str | None = None
    scores: str | None = None
    value: str | None = None
    classes: tuple[str | int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The output as the manifest keeps it."""
        return {
            "kind": self.kind,
            "label": self.label,
            "scores": self.scores,
            "value": self.value,
            "classes": list(self.classes),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Output:
        """Read what `to_json` wrote."""
        return cls(**{**document, "classes": tuple(document["classes"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a package must pass to be served.

    Attributes:
        examples: the file of the end-to-end set, within the package.
        confidence: the file of the labelled confidence set, within the package.
        metric: the name of a metric of `quality`, measured on the confidence set.
        acceptable: the least and the greatest value of the metric, both inclusive.
        target: the column of the confidence set that holds the truth; None means `label` or `value`, by the output's
            kind.
        latency_ms: the most milliseconds that one record may take, by the median over examples; None for any.
    """

    examples: str | None = None
    confidence: str | None = None
    metric: str | None = None
    acceptable: tuple[float, float] | None = None
    target: str | None = None
    latency_ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The gate as the manifest keeps it."""
        return {
            "examples": self.examples,
            "confidence": self.confidence,
            "metric": self.metric,
            "acceptable": self.acceptable and list(self.acceptable),
            **_given(target=self.target, latency_ms=self.latency_ms),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Gate:
        """Read what `to_json` wrote.

        Raises:
            InvalidManifest: its numbers are none.
        """
        acceptable, latency_ms = document["acceptable"], document.get("latency_ms")
        pair = acceptable is None or (isinstance(acceptable, list) and len(acceptable) == 2)  # noqa: PLR2004
        if not pair or not all(
            type(number) in {int, float, type(None)} for number in [*(acceptable or ()), latency_ms]
        ):
            message = f"gate: want two numbers as acceptable and one as latency_ms, got {shown(dict(document))}"
            raise InvalidManifest(message)
        return cls(**{**document, "acceptable": acceptable and tuple(acceptable)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The facts of one model package. How it is operated stands in the release document.

    Attributes:
        key: the field of a record that is its own id, if it has one.
        reference: the file that drift is measured against.
        training: data and script digests, library versions, time.
        bake: whether the model layer carries this package while it is champion.
        notes: what a caller should know of this version.
        weights: files beside the ONNX file that hold some of its tensors.
        time: the field of a record that says when it happened, if it has one.
    """

    name: str
    version: str
    signature: Signature
    output: Output
    description: str = ""
    key: str | None = None
    gate: Gate = Gate()
    reference: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    bake: bool = True
    notes: str = ""
    weights: tuple[str, ...] = ()
    time: str | None = None

    @property
    def online(self) -> bool:
        """Whether any of its features is looked up by us."""
        return self.signature.online

    @property
    def files(self) -> list[str]:
        """The files that the package must hold beside the manifest and the ONNX file."""
        named = (self.gate.examples, self.gate.confidence, self.reference, *self.weights)
        return [name for name in named if name is not None]

    def to_json(self) -> dict[str, Any]:
        """The manifest as the package keeps it."""
        return {
            "schema": SCHEMA if self.online else PLAIN_SCHEMA,
            "name": self.name,
            "version": self.version,
            "description": self.description,
            "key": self.key,
            "signature": self.signature.to_json(),
            "output": self.output.to_json(),
            "gate": self.gate.to_json(),
            "reference": self.reference,
            "training": dict(self.training),
            "bake": self.bake,
            **_given(notes=self.notes or None, weights=list(self.weights) or None, time=self.time),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Manifest:
        """Read a manifest.

        Raises:
            InvalidManifest: it has a newer schema, or it is no manifest.
        """
        try:
            check_schema("manifest", document["schema"], SCHEMA)
            manifest = cls(
                name=document["name"],
                version=document["version"],
                description=document["description"],
                key=document["key"],
                signature=Signature.from_json(document["signature"]),
                output=Output.from_json(document["output"]),
                gate=Gate.from_json(document["gate"]),
                reference=document["reference"],
                training=document["training"],
                bake=document["bake"],
                notes=document.get("notes", ""),
                weights=tuple(document.get("weights", ())),
                time=document.get("time"),
            )
        except (KeyError, TypeError) as error:
            message = f"manifest: want the fields of schema {SCHEMA}, got {error!r}"
            raise InvalidManifest(message) from error
        if not isinstance(manifest.time, str | None):
            message = f"manifest: want the name of a field as time, got {shown(manifest.time)}"
            raise InvalidManifest(message)
        if odd := [name for name in manifest.files if not (isinstance(name, str) and FILE_NAME.fullmatch(name))]:
            message = f"manifest: want plain names of files in the package, got {shown(odd[0])}"
            raise InvalidManifest(message)
        return manifest


@dataclass(frozen=True, slots=True)
class Package:
    """A model package in a folder: immutable, and known by its digest."""

    folder: Path
    digest: str
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.folder / MODEL

    @property
    def weights_bytes(self) -> int:
        """The size of the ONNX file and of the weights beside it.

        Raises:
            InvalidPackage: one of them is not there.
        """
        try:
            return sum((self.folder / name).stat().st_size for name in (MODEL, *self.manifest.weights))
        except OSError as error:
            message = f"package {self.digest[:12]}: want the file {Path(error.filename).name}, got none"
            raise InvalidPackage(message) from error


def _given(**fields: object) -> dict[str, Any]:
    """The fields that are set. What came after the first writers is left out elsewhere: their digests must hold."""
    return {name: value for name, value in fields.items() if value is not None}


def digest_of(folder: Path) -> str:
    """Compute a package's identity: the same on every machine, whatever the zip's bytes.

    It is the SHA-256 of the compact JSON list of [path, size in bytes, SHA-256], sorted by path.
    """
    entries = []
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            entries.append([path.name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()])
    return hashlib.sha256(json.dumps(entries, separators=(",", ":")).encode()).hexdigest()


def open_package(folder: Path, digest: str) -> Package:
    """Read the package in a folder whose digest is known already.

    Raises:
        InvalidPackage: the manifest is missing or unreadable.
    """
    try:
        document = json.loads((folder / MANIFEST).read_bytes())
        return Package(folder, digest, Manifest.from_json(document))
    except (OSError, ValueError, RecursionError, InvalidManifest) as error:
        message = f"package {digest[:12]}: want a readable {MANIFEST}, got {error}"
        raise InvalidPackage(message) from error


def pack(folder: Path) -> bytes:
    """Zip a package folder, with fixed times and order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.writestr(zipfile.ZipInfo(path.name, (1980, 1, 1, 0, 0, 0)), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def unpack(content: Path, digest: str, target: Path) -> Package:
    """Unpack a zip into `target`: checked before it is unpacked, verified before it is seen, renamed at once.

    Args:
        content: the zip file.
        digest: the identity that the files must have.
        target: the folder to make; one that is there already is kept.

    Raises:
        InvalidPackage: anything but a flat set of data files with that digest.
        NotServable: there is no room for it now.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{digest[:12]}-", dir=target.parent))
    try:
        with zipfile.ZipFile(content) as archive:
            _check_entries(archive, digest)
            archive.extractall(staging)
        if (got := digest_of(staging)) != digest:
            message = f"package: want digest {digest}, got {got}"
            raise InvalidPackage(message)
        if not target.exists():
            staging.rename(target)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        message = f"package {digest[:12]}: want a whole zip file, got {error}"
        raise InvalidPackage(message) from error
    except OSError as error:
        if target.exists():  # Somebody else unpacked the same digest meanwhile.
            return open_package(target, digest)
        if error.errno == errno.EINVAL:  # A place that no file has, which the zip points at.
            message = f"package {digest[:12]}: want a whole zip file, got {error}"
            raise InvalidPackage(message) from error
        # A full disk says nothing of the package: the next try may find room.
        message = f"package {digest[:12]}: want room to unpack it, got {error}"
        raise NotServable(message) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return open_package(target, digest)


def _check_entries(archive: zipfile.ZipFile, digest: str) -> None:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    wrong: str | None = None
    if len(entries) > MAXIMUM_FILES or len(set(names)) != len(names):
        wrong = f"at most {MAXIMUM_FILES} files, each once, got {len(entries)}"
    elif odd := [name for name in names if not FILE_NAME.fullmatch(name)]:
        wrong = f"plain file names, got {odd[0]!r}"
    elif links := [entry.filename for entry in entries if stat.S_ISLNK(entry.external_attr >> 16)]:
        wrong = f"no links, got {links[0]!r}"
    elif foreign := [entry.filename for entry in entries if entry.flag_bits & 1 or entry.compress_type not in _METHODS]:
        wrong = f"files that are stored or deflated, and not encrypted, got {foreign[0]!r}"
    elif (total := sum(entry.file_size for entry in entries)) > MAXIMUM_BYTES:
        wrong = f"at most {MAXIMUM_BYTES} bytes, got {total}"
    elif bombs := [
        entry.filename
        for entry in entries
        if entry.file_size > _RATIO_FREE_BYTES and entry.file_size > MAXIMUM_RATIO * max(1, entry.compress_size)
    ]:
        wrong = f"files that deflate by at most {MAXIMUM_RATIO}, got {bombs[0]!r}"
    elif overlapping := _overlapping(entries):
        wrong = f"files that share no bytes of the zip, got {overlapping!r} within another"
    if wrong:
        message = f"package {digest[:12]}: want {wrong}"
        raise InvalidPackage(message)


def _overlapping(entries: list[zipfile.ZipInfo]) -> str | None:
    """The first file that begins before the one before it ends, which makes many large files of few bytes.

    Newer versions of zipfile refuse it themselves, on reading (CVE-2024-0450); Python 3.11.7 does not.
    """
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            return entry.filename
        end = entry.header_offset + _LOCAL_HEADER_BYTES + len(entry.filename) + entry.compress_size
    return None
