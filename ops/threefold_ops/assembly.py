"""Reads a synthesized cloud assembly (`cdk.out`): its stacks in deploy order, their templates and their file assets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, Final

from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from pathlib import Path

_STACK: Final = "aws:cloudformation:stack"
_ASSETS: Final = "cdk:asset-manifest"


@dataclass(frozen=True, slots=True)
class Asset:
    """A file or folder that a stack expects in a bucket; names may hold `${AWS::…}` placeholders.

    Attributes:
        name: what the assembly calls it, for people.
        source: the file or the folder.
        packaging: `zip` for a folder that is to be zipped, `file` for a file as it is.
        bucket: the bucket's name.
        key: the object's key, which changes with the content.
        region: the bucket's region, '' for the deploy's own.
    """

    name: str
    source: Path
    packaging: str
    bucket: str
    key: str
    region: str


@dataclass(frozen=True, slots=True)
class Stack:
    """One stack of an assembly.

    Attributes:
        name: the CloudFormation name.
        template_file: its template, as it was synthesized.
        template: the same, parsed.
        template_url: `s3://bucket/key` of the published template, '' when it is not an asset.
        parameters: values for the template's parameters.
        tags: the stack's tags.
        assets: what has to be published before.
        protected: whether it is protected from deletion.
    """

    name: str
    template_file: Path
    template: dict[str, Any]
    template_url: str
    parameters: dict[str, str]
    tags: dict[str, str]
    assets: tuple[Asset, ...]
    protected: bool

    def resources(self, kind: str | None = None) -> dict[str, dict[str, Any]]:
        """Return the resources by logical id, of one type or of all."""
        every: dict[str, dict[str, Any]] = self.template.get("Resources", {})
        return {name: resource for name, resource in every.items() if kind in {None, resource["Type"]}}


def read(assembly: Path) -> list[Stack]:
    """Read the stacks of an assembly, each after those it depends on.

    Raises:
        OperatorError: the folder is no assembly, or needs what only the CDK CLI can do.
    """
    manifest_file = assembly / "manifest.json"
    if not manifest_file.is_file():
        message = f"cloud assembly: want {manifest_file}, got nothing there: run the synthesis first"
        raise OperatorError(message)
    artifacts: dict[str, dict[str, Any]] = json.loads(manifest_file.read_text())["artifacts"]
    if problems := [name for name, artifact in artifacts.items() if artifact.get("type") == "cdk:cloud-assembly"]:
        message = f"cloud assembly: want stacks at the top, got the nested stages {', '.join(problems)}"
        raise OperatorError(message)
    graph = {name: artifact.get("dependencies", []) for name, artifact in artifacts.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        message = f"cloud assembly: want an order of the stacks, got a cycle: {error.args[1]}"
        raise OperatorError(message) from error
    return [
        _stack(assembly, name, artifacts[name], artifacts)
        for name in order
        if artifacts.get(name, {}).get("type") == _STACK
    ]


def plan(assembly: Path) -> list[tuple[str, str, str]]:
    """Say what a deploy would consist of, without credentials: (stack, resource type, logical id) in deploy order."""
    return [
        (stack.name, resource["Type"], logical_id)
        for stack in read(assembly)
        for logical_id, resource in stack.resources().items()
    ]


def _stack(assembly: Path, artifact_id: str, artifact: dict[str, Any], artifacts: dict[str, dict[str, Any]]) -> Stack:
    properties = artifact["properties"]
    template_file = assembly / properties["templateFile"]
    assets = [
        asset
        for name in artifact.get("dependencies", [])
        if artifacts[name].get("type") == _ASSETS
        for asset in _assets(assembly / artifacts[name]["properties"]["file"])
    ]
    return Stack(
        name=properties.get("stackName", artifact_id),
        template_file=template_file,
        template=json.loads(template_file.read_text()),
        template_url=properties.get("stackTemplateAssetObjectUrl", ""),
        parameters=properties.get("parameters", {}),
        tags=properties.get("tags", {}),
        assets=tuple(assets),
        protected=bool(properties.get("terminationProtection")),
    )


def _assets(manifest_file: Path) -> list[Asset]:
    manifest = json.loads(manifest_file.read_text())
    if manifest.get("dockerImages"):
        message = f"{manifest_file.name}: want file assets only, got container images"
        raise OperatorError(message)
    found = []
    for identity, entry in manifest.get("files", {}).items():
        source = entry["source"]
        if "path" not in source:
            message = f"{manifest_file.name}: asset {identity}: want a path, got {sorted(source)}"
            raise OperatorError(message)
        found += [
            Asset(
                name=entry.get("displayName") or source["path"],
                source=manifest_file.parent / source["path"],
                packaging=source.get("packaging", "file"),
                bucket=destination["bucketName"],
                key=destination["objectKey"],
                region=destination.get("region", ""),
            )
            for destination in entry["destinations"].values()
        ]
    return found
