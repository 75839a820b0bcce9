"""The columns that a model's CSV has: what records bring, and what they are looked up by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from threefold.signature import Feature

if TYPE_CHECKING:
    from threefold.package import Manifest


def read_fields(manifest: Manifest) -> tuple[Feature, ...]:
    """What is read of a row: the features that it brings, and the fields that others are looked up by.

    A file without a column for an entity, or for what a window is of, would get windows without any event in every row:
    it is refused like one that lacks a feature. One without a column for the time happened when it was uploaded.
    """
    signature = manifest.signature
    if not signature.online:
        return signature.features
    found = {feature.name: feature for feature in signature.own}
    sources = [source for _, source in signature.windows] + [source for _, source in signature.tables]
    for source in sources:
        found.setdefault(source.entity, Feature(name=source.entity, type="string"))
    for _, source in signature.windows:
        if source.of:
            found.setdefault(source.of, Feature(name=source.of, type="float64"))
    if manifest.time is not None:
        found.setdefault(manifest.time, Feature(name=manifest.time, type="string", missing=""))
    return tuple(found.values())
