"""How two packages differ in their facts: the manifest field by field, and the files."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from threefold.package import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from threefold.package import Package
    from threefold_ops.registry.reference import Found

# Lists whose entries go by a name: a feature that moved is not every feature changed.
_NAMED = frozenset({"features", "inputs", "outputs"})


def differences(a: Found, b: Found) -> list[tuple[str, Any, Any]]:
    """Every fact that differs, sorted: (what, in a, in b); None where one has no such fact."""
    first, second = (_facts(found) for found in (a, b))
    return [
        (what, first.get(what), second.get(what))
        for what in sorted({*first, *second})
        if first.get(what) != second.get(what)
    ]


def _facts(found: Found) -> dict[str, Any]:
    facts = dict(_flat("", found.package.manifest.to_json()))
    if found.serving is not None:
        facts |= dict(_flat("serving", dict(found.serving)))
    return facts | dict(_files(found.package))


def _files(package: Package) -> Iterator[tuple[str, Any]]:
    for path in sorted(package.folder.iterdir()):
        if path.name != MANIFEST:  # told field by field
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            yield f"file {path.name}", f"{path.stat().st_size} bytes, {digest[:12]}"


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else name, part)
    elif isinstance(value, list) and prefix.rpartition(".")[2] in _NAMED:
        yield f"{prefix} in order", [part["name"] for part in value]
        for part in value:
            yield from _flat(f"{prefix}.{part['name']}", {k: v for k, v in part.items() if k != "name"})
    else:
        yield prefix, value
