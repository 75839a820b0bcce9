"""model.yaml as a person writes it: read, checked, and every mistake named with its line."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from threefold.package import Gate, Kind, Output
from threefold.release import MODEL_NAME
from threefold.signature import Feature
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from pathlib import Path

NEWEST_SCHEMA = 1
FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"

FileName = Annotated[str, Field(pattern=FILE_NAME)]
Scalar = bool | int | float | str


class _Part(BaseModel):
    """A part of model.yaml: what it does not know, it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FeaturePart(_Part):
    """One named value of a record."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    type: Literal["float32", "float64", "int32", "int64", "bool", "string"]
    missing: Scalar | None = None
    min: float | None = None
    max: float | None = None
    outside: Literal["error", "flag"] = "error"
    allowed: Annotated[list[Scalar], Field(min_length=1)] | None = None
    unit: str | None = None
    description: str | None = None

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
        fields = self.model_dump()
        return Feature(**{**fields, "allowed": None if self.allowed is None else tuple(self.allowed)})


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

    def gate(self) -> Gate:
        """The gate as the package's manifest holds it."""
        return Gate(**self.model_dump())


class DriftPart(_Part):
    """What drift is measured against."""

    reference: FileName


class ServingPart(_Part):
    """How the model is operated: it goes to the release document."""

    abstain_below: Annotated[float, Field(ge=0, le=1)] | None = None
    options: Annotated[int, Field(ge=1, le=100)] = 3


class ModelFile(_Part):
    """A whole model.yaml."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[str, Field(pattern=f"^{MODEL_NAME.pattern}$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,62}$")]
    description: str = ""
    key: str | None = None
    features: list[FeaturePart] = []
    layout: Literal["packed", "columns"] | None = None
    output: OutputPart
    gate: GatePart = GatePart()
    drift: DriftPart | None = None
    training: dict[str, Any] = {}
    bake: bool = True
    serving: ServingPart = ServingPart()

    @model_validator(mode="after")
    def _check(self) -> ModelFile:
        if self.layout and not self.features:
            message = "layout: want features with it, got none"
            raise ValueError(message)
        return self

    def assets(self) -> list[str]:
        """The names of the quality assets that the package carries."""
        names = [self.gate.examples, self.gate.confidence, self.drift.reference if self.drift else None]
        return [name for name in names if name is not None]


def read_model_file(path: Path) -> ModelFile:
    """Read and check a model.yaml.

    Raises:
        OperatorError: all that is wrong with it, a line each.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.safe_load(text)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path}: want a readable file, got {error}"
        raise OperatorError(message) from error
    except yaml.YAMLError as error:
        message = f"{path}: want YAML, got {error}"
        raise OperatorError(message) from error
    if isinstance(document, dict) and isinstance(schema := document.get("schema"), int) and schema > NEWEST_SCHEMA:
        message = f"{path}: want schema {NEWEST_SCHEMA} or older, got {schema}; upgrade Threefold to read a newer one"
        raise OperatorError(message)
    try:
        return ModelFile.model_validate(document)
    except ValidationError as error:
        lines = [
            f"{path}:{_line(tree, problem['loc'])}: "
            f"{'.'.join(map(str, problem['loc'])) or 'model.yaml'}: {problem['msg']}, got {problem['input']!r:.60}"
            for problem in error.errors()
        ]
        raise OperatorError("\n".join(lines)) from error


def _line(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """The line that a mistake stands on: the deepest part of its location that is there."""
    if node is None:
        return 1
    for step in location:
        if isinstance(node, yaml.MappingNode):
            found = next((value for key, value in node.value if key.value == step), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            found = node.value[step]
        else:
            found = None
        if found is None:
            break
        node = found
    return node.start_mark.line + 1


def _is_of(value: Scalar, kind: str) -> bool:
    if kind == "string":
        return isinstance(value, str)
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    if kind.startswith("int"):
        return isinstance(value, int)
    return isinstance(value, int | float) and not (isinstance(value, float) and math.isinf(value))
