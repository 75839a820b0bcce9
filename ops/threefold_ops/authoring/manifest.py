"""model.yaml as a person writes it: read, checked, and every mistake named with its line."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator, model_validator

from threefold.gate import Finding
from threefold.names import PENDING_PREFIX
from threefold.package import FILE_NAME, Gate, Kind, Output
from threefold.release import MODEL_NAME
from threefold.signature import Feature
from threefold.sources import OVER, SOURCE_FIELDS, source_from_json
from threefold_ops.authoring.mistakes import explain
from threefold_ops.authoring.source import Source, Unreadable, read_source
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from threefold_ops.authoring.source import Location

MODEL_FILE: Final = "model.yaml"
NEWEST_SCHEMA: Final = 1

NAME: Final = f"^{MODEL_NAME.pattern}$"
VERSION: Final = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,62}$"
_FILE: Final = f"^{FILE_NAME.pattern}$"
_OVER: Final = f"^{OVER.pattern}$"
PATTERNS: Final = {
    NAME: "a-z, 0-9 and -, at most 63, no - first",
    VERSION: "letters, digits and . _ + -, at most 63, a letter or a digit first",
    _FILE: "the name of a file in the folder: letters, digits and . _ -, at most 100, a letter or a digit first",
    _OVER: "<n>m, <n>h or <n>d, with n from 1 to 9999",
}
# By where a feature comes from, what must be said of it and what may be.
_SOURCES: Final[Mapping[str | None, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    None: ((), ()),
    "window": (("entity", "agg", "over"), ("entity", "agg", "over", "of")),
    "table": (("entity", "field"), ("entity", "field")),
}
# Parts without which nothing can be said of the graph.
_NEEDED: Final = frozenset({"features", "layout", "output", "key"})
# Without one of them, the others mean nothing.
_TOGETHER: Final[tuple[Location, ...]] = (("confidence",), ("metric",), ("acceptable",))
_PLACEHOLDERS: Final = {"schema": NEWEST_SCHEMA, "name": "unnamed", "version": "0"}

FileName = Annotated[str, Field(pattern=_FILE)]
FieldName = Annotated[str, Field(min_length=1, max_length=200)]
Scalar = bool | int | float | str


class _Part(BaseModel):
    """A part of model.yaml: what it does not know, it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FeaturePart(_Part):
    """One named value of a record."""

    name: FieldName
    type: Literal["float32", "float64", "int32", "int64", "bool", "string"]
    missing: Scalar | None = None
    min: float | None = None
    max: float | None = None
    outside: Literal["error", "flag"] = "error"
    allowed: Annotated[list[Scalar], Field(min_length=1)] | None = None
    unit: str | None = None
    description: str | None = None
    from_: Annotated[Literal["window", "table"] | None, Field(alias="from")] = None
    entity: FieldName | None = None
    of: FieldName | None = None
    agg: Literal["sum", "count", "mean", "max", "last"] | None = None
    over: Annotated[str, Field(pattern=_OVER)] | None = None
    field: FieldName | None = None

    @model_validator(mode="after")
    def _check_source(self) -> FeaturePart:
        needed, allowed = _SOURCES[self.from_]
        given = [name for name in SOURCE_FIELDS[1:] if getattr(self, name) is not None]
        origin = f"from: {self.from_}" if self.from_ else "a feature that records bring"
        if missing := [name for name in needed if name not in given]:
            message = f"want {' and '.join(missing)} with {origin}, got none"
            raise ValueError(message)
        if odd := [name for name in given if name not in allowed]:
            message = f"want no {' and no '.join(odd)} with {origin}, got {getattr(self, odd[0])!r}"
            raise ValueError(message)
        if self.agg is not None and self.agg != "count" and self.of is None:
            message = f"want of, the field that {self.agg} is of, got none"
            raise ValueError(message)
        whole = self.agg == "count" and self.type.startswith("int")
        if self.from_ == "window" and not whole and not self.type.startswith("float"):
            message = (
                f"want {'a number' if self.agg == 'count' else 'float32 or float64'} for {self.agg}, got {self.type}"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _check(self) -> FeaturePart:
        if self.min is not None and self.max is not None and self.min > self.max:
            message = f"want min <= max, got {self.min} > {self.max}"
            raise ValueError(message)
        if self.type in {"string", "bool"} and (self.min is not None or self.max is not None):
            message = f"want min and max on numbers only, got them on a {self.type}"
            raise ValueError(message)
        for value in [*(self.allowed or []), *([] if self.missing is None else [self.missing])]:
            if not _is_of(value, self.type):
                message = f"want {self.type} values, got {value!r}"
                raise ValueError(message)
        if self.missing is not None and self.allowed is not None and self.missing not in self.allowed:
            message = f"want a missing value out of {self.allowed}, got {self.missing!r}"
            raise ValueError(message)
        return self

    def feature(self) -> Feature:
        """The feature as the signature holds it."""
        fields = self.model_dump(by_alias=True)
        source = source_from_json({name: value for name, value in fields.items() if value is not None})
        own = {name: value for name, value in fields.items() if name not in SOURCE_FIELDS}
        return Feature(**{**own, "allowed": None if self.allowed is None else tuple(self.allowed)}, source=source)


class OutputPart(_Part):
    """Which output tensors mean what."""

    kind: Kind
    label: str | None = None
    scores: str | None = None
    value: str | None = None
    # Strict: YAML reads no and yes as booleans, which would pass for 0 and 1.
    classes: list[Annotated[int, Strict()] | str] = []

    @model_validator(mode="after")
    def _check(self) -> OutputPart:
        if self.kind == "classification" and not (self.label or (self.scores and self.classes)):
            message = "classification: want label, or scores and classes"
            raise ValueError(message)
        if self.kind == "regression" and not self.value:
            message = "regression: want value, the name of the output"
            raise ValueError(message)
        return self

    def output(self) -> Output:
        """The output as the package's manifest holds it."""
        return Output(**{**self.model_dump(), "classes": tuple(self.classes)})


class GatePart(_Part):
    """What a package must pass to be served."""

    examples: FileName | None = None
    confidence: FileName | None = None
    metric: Literal["accuracy", "f1_macro", "auc", "log_loss", "rmse", "mae", "r2"] | None = None
    acceptable: tuple[float, float] | None = None
    target: Annotated[str, Field(min_length=1)] | None = None
    latency_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @field_validator("acceptable")
    @classmethod
    def _check_acceptable(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] <= value[1]:
            message = f"want [low, high], got [{value[0]:g}, {value[1]:g}]"
            raise ValueError(message)
        return value

    def gate(self) -> Gate:
        """The gate as the package's manifest holds it."""
        return Gate(**self.model_dump())


class DriftPart(_Part):
    """What drift is measured against."""

    reference: FileName


class Serving(_Part):
    """How a model is operated: it stands in the release document.

    Attributes:
        abstain_below: where the best class's score is lower, the answer is an abstention.
        options: how many of the likeliest classes go with an abstention.
        precomputed_max_age_days: how old a stored answer may be that is served in the place of a new one.
        rollback_on_failure: whether the monitor may roll back a champion that begins to fail.
    """

    abstain_below: Annotated[float, Field(ge=0, le=1)] | None = None
    options: Annotated[int, Field(ge=1, le=100)] = 3
    precomputed_max_age_days: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    rollback_on_failure: bool = False

    def settings(self) -> dict[str, Any]:
        """What is set, as the release document has it; the rest is left to the defaults."""
        return self.model_dump(exclude_unset=True, exclude_none=True)


class ModelFile(_Part):
    """A whole model.yaml."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[str, Field(pattern=NAME)]
    version: Annotated[str, Field(pattern=VERSION)]
    description: str = ""
    notes: str = ""
    key: str | None = None
    time: FieldName | None = None
    features: list[FeaturePart] = []
    layout: Literal["packed", "columns"] | None = None
    output: OutputPart
    gate: GatePart = GatePart()
    drift: DriftPart | None = None
    training: dict[str, Any] = {}
    bake: bool = True
    serving: Serving = Serving()

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if f"{value}/" == PENDING_PREFIX:
            message = f"want another name than {value!r}: in the inbox it is the folder of pending records"
            raise ValueError(message)
        return value

    @field_validator("schema_", mode="before")
    @classmethod
    def _check_schema(cls, value: object) -> object:
        if value is True:  # Which Python takes for 1.
            message = f"want {NEWEST_SCHEMA}, got true"
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _check(self) -> ModelFile:
        if self.layout and not self.features:
            message = "layout: want features with it, got none"
            raise ValueError(message)
        looked_up = {part.name for part in self.features if part.from_ is not None}
        asked = {self.time, *(name for part in self.features for name in (part.entity, part.of))}
        if circular := sorted(looked_up & asked):
            message = f"features: want time, entity and of that a record brings, got {circular}, looked up themselves"
            raise ValueError(message)
        texts = {part.name for part in self.features if part.type == "string"}
        if odd := sorted({part.of for part in self.features if part.of in texts}):
            message = f"features: want of to name a number, got {odd}, a string"
            raise ValueError(message)
        return self

    def assets(self) -> list[str]:
        """The names of the quality assets that the package carries."""
        return list(self.named_files().values())

    def named_files(self) -> dict[Location, str]:
        """The names of the quality assets, by the location that names them."""
        names: dict[Location, str | None] = {
            ("gate", "examples"): self.gate.examples,
            ("gate", "confidence"): self.gate.confidence,
            ("drift", "reference"): self.drift.reference if self.drift else None,
        }
        return {place: name for place, name in names.items() if name is not None}


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model.yaml says, and what is wrong with it.

    Attributes:
        written: without the mistakes, as far as it can be used without them; with any, only to look for more.
        source: where what stands; None if it is no YAML.
        findings: by line.
    """

    written: ModelFile | None
    source: Source | None
    findings: list[Finding]

    def finding(self, place: Location, message: str) -> Finding:
        """A finding about a part of the file."""
        line = None if self.source is None else self.source.line(place)
        return Finding(MODEL_FILE, ": ".join(filter(None, [_path(place), message])), line)


def inspect_model_file(path: Path) -> Reading:
    """Read a model.yaml and find all that is wrong with it."""
    try:
        source = read_source(path)
    except Unreadable as unreadable:
        return Reading(None, None, [unreadable.finding])
    document = source.document
    if isinstance(document, dict) and isinstance(schema := document.get("schema"), int) and schema > NEWEST_SCHEMA:
        message = f"want schema {NEWEST_SCHEMA} or older, got {schema}; upgrade Threefold to read a newer one"
        return Reading(None, source, [Finding(path.name, message, source.line(("schema",)))])
    mistakes: dict[Location, str] = {}
    written: ModelFile | None = None
    try:
        written = ModelFile.model_validate(document)
    except ValidationError as error:
        mistakes = dict(explain(error, ModelFile, source.present, PATTERNS))
        written = _salvage(document, list(mistakes))
    findings = [
        Finding(path.name, f"{_path(place) or MODEL_FILE}: {message}", source.line(place))
        for place, message in mistakes.items()
    ]
    return Reading(written, source, sorted([*source.repeated, *findings], key=lambda found: found.line or 0))


def read_model_file(path: Path) -> ModelFile:
    """Read and check a model.yaml.

    Raises:
        OperatorError: all that is wrong with it, a line each.
    """
    reading = inspect_model_file(path)
    if reading.findings or reading.written is None:
        raise OperatorError("\n".join(f"{path.parent / str(finding)}" for finding in reading.findings))
    return reading.written


def check_serving(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check how a model is to be operated, as under `serving` in a model.yaml.

    Returns:
        What is set, as the release document has it.

    Raises:
        OperatorError: all that is wrong with it, a line each.
    """
    source = Source(dict(settings), [], None)
    try:
        return Serving.model_validate(dict(settings)).settings()
    except ValidationError as error:
        mistakes = explain(error, Serving, source.present, PATTERNS)
        raise OperatorError(
            "\n".join(f"{_path(('serving', *place))}: {message}" for place, message in mistakes)
        ) from error


def _salvage(document: Any, mistakes: list[Location]) -> ModelFile | None:  # noqa: ANN401 - any YAML
    """The file without its mistakes, if they leave what the graph can be compared with."""
    if not isinstance(document, dict) or any(not place or place[0] in _NEEDED for place in mistakes):
        return None
    kept = copy.deepcopy(document)
    if any(place[:1] == ("gate",) and place[1:2] in _TOGETHER for place in mistakes):
        mistakes = [*mistakes, *(("gate", *one) for one in _TOGETHER)]
    for place in mistakes:
        *above, last = place
        part = kept
        for step in above:
            if not isinstance(part.get(step), dict):
                last = step
                break
            part = part[step]
        part.pop(last, None)
    try:
        return ModelFile.model_validate(_PLACEHOLDERS | kept)
    except ValidationError:
        return None


def _path(place: Location) -> str:
    return ".".join(map(str, place))


def _is_of(value: Scalar, kind: str) -> bool:
    if kind == "string":
        return isinstance(value, str)
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    if kind.startswith("int"):
        return isinstance(value, int)
    return isinstance(value, int | float) and not (isinstance(value, float) and math.isinf(value))
