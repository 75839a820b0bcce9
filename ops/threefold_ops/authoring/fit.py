"""Whether a model.yaml fits its graph: features against inputs, outputs and classes against what the graph answers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from threefold.errors import InvalidManifest, shown
from threefold.signature import Feature, Signature

if TYPE_CHECKING:
    from collections.abc import Iterator

    from threefold.signature import TensorSpec
    from threefold_ops.authoring.graph import Graph
    from threefold_ops.authoring.manifest import ModelFile, OutputPart
    from threefold_ops.authoring.source import Location

    Misfit = tuple[Location, str]


def misfits(written: ModelFile, found: Signature, graph: Graph) -> Iterator[Misfit]:
    """All that does not fit, each with the location in model.yaml.

    Args:
        written: what the file says.
        found: the tensors of the graph.
        graph: what else it says of itself.
    """
    features = tuple(part.feature() for part in written.features)
    if features:
        yield from _features(features, replace(found, layout=written.layout or "packed"))
    yield from _outputs(written.output, {spec.name: spec for spec in found.outputs}, graph)


def _features(features: tuple[Feature, ...], found: Signature) -> Iterator[Misfit]:
    names = [feature.name for feature in features]
    doubled = [i for i, name in enumerate(names) if name in names[:i]]
    for i in doubled:
        yield ("features", i, "name"), f"want a name once, got {names[i]!r} again"
    specs = {spec.name: spec for spec in found.inputs}
    packed = found.layout == "packed"
    alone = [replace(spec, shape=(-1, -1)) for spec in found.inputs[:1] if spec.datatype != "BYTES"]
    for i, feature in enumerate(features):
        inputs = alone if packed else [specs[feature.name]] if feature.name in specs else []
        if inputs and (wrong := _wrong(replace(found, inputs=tuple(inputs), features=(feature,)))):
            yield ("features", i), wrong
    # As features that any number's tensor holds: their number alone is in question, and the inputs' own form.
    plain = tuple(Feature(name=name, type="bool") for name in names) if packed else features
    if not doubled and (packed or set(specs) != set(names)) and (wrong := _wrong(replace(found, features=plain))):
        yield ("features",), wrong


def _wrong(signature: Signature) -> str | None:
    try:
        signature.check()
    except InvalidManifest as error:
        return str(error)
    return None


def _outputs(output: OutputPart, specs: dict[str, TensorSpec], graph: Graph) -> Iterator[Misfit]:
    classes = output.classes
    if doubled := [name for i, name in enumerate(classes) if name in classes[:i]]:
        yield ("output", "classes"), f"want each class once, got {shown(doubled)} again"
    named = {"label": output.label, "scores": output.scores, "value": output.value}
    known = {part: specs[name] for part, name in named.items() if name in specs}
    for part, name in named.items():
        if name is not None and part not in known:
            yield ("output", part), f"want one of the graph's outputs {sorted(specs)}, got {name!r}"
    yield from _forms(output, known)
    if classes and not doubled:
        yield from _classes(output, known, graph)


def _forms(output: OutputPart, known: dict[str, TensorSpec]) -> Iterator[Misfit]:
    """One value a row, a score a class, and numbers where numbers are meant."""
    for part, spec in known.items():
        columns = _columns(spec)
        if part != "label" and spec.datatype == "BYTES":
            yield ("output", part), f"want an output of numbers, got text in {spec.name!r}"
        elif part != "scores" and columns not in {1, -1}:
            yield ("output", part), f"want an output of one value a row, [n] or [n, 1], got {_shape(spec)}"
        elif part == "scores" and output.classes and columns not in {len(output.classes), -1}:
            wanted = f"a score for each of the {len(output.classes)} classes"
            yield ("output", part), f"want {wanted}, [n, {len(output.classes)}], got {_shape(spec)}"


def _classes(output: OutputPart, known: dict[str, TensorSpec], graph: Graph) -> Iterator[Misfit]:
    """The classes against those of the graph; scores alone have a number of columns, and no names."""
    classes, place = tuple(output.classes), ("output", "classes")
    in_maps = graph.labels.get(output.scores or "", ()) if output.scores in graph.maps else ()
    of_label = graph.labels.get(output.label or "", ()) if "label" in known else ()
    by_column = graph.labels.get(output.scores or "", ()) if of_label and "scores" in known else ()
    if in_maps and set(in_maps) != set(classes):
        yield place, f"want the classes of the graph's scores, {shown(list(in_maps))}, got {shown(list(classes))}"
    elif of_label and set(of_label) != set(classes):
        yield place, f"want the classes of the graph's labels, {shown(list(of_label))}, got {shown(list(classes))}"
    # Of other names are those of a model within the model, as a stack has one.
    elif not in_maps and set(by_column) == set(of_label) and by_column not in {(), classes}:
        yield place, f"want them in the order of the scores, {shown(list(by_column))}, got {shown(list(classes))}"
    elif "label" in known and not of_label:
        text = known["label"].datatype == "BYTES"
        if any(isinstance(name, str) is not text for name in classes):
            wanted = "text" if text else "whole numbers"
            yield place, f"want {wanted}, as the labels of {output.label!r} are, got {shown(list(classes))}"


def _columns(spec: TensorSpec) -> int:
    """How many values a row has; -1 if that is open, 0 if there are no rows."""
    if not spec.shape:
        return 0
    return -1 if -1 in spec.shape[1:] else math.prod(spec.shape[1:])


def _shape(spec: TensorSpec) -> str:
    return f"{spec.datatype} {list(spec.shape)}"
