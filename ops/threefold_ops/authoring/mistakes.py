"""What pydantic finds wrong with what a person wrote, in the house's words: what, wanted, got."""

from __future__ import annotations

import datetime as dt
import difflib
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic import BaseModel

from threefold.errors import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from threefold_ops.authoring.source import Location

# What was wanted, by the type of the error; in braces, what pydantic knows of the limit.
# https://docs.pydantic.dev/latest/errors/validation_errors/
_WANTED: Final = {
    "missing": "it given",
    "invalid_key": "text for a key",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number with fewer digits",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "literal_error": "{expected}",
}


def explain(
    error: ValidationError,
    model: type[BaseModel],
    present: Callable[[Location], Location],
    patterns: Mapping[str, str],
) -> Iterator[tuple[Location, str]]:
    """Each mistake once, with its location.

    Args:
        error: what the model raised.
        model: the model that was asked for.
        present: gives as much of a location as what was written has; pydantic's go on with names of types.
        patterns: the models' patterns in words.
    """
    problems: dict[Location, list[ErrorDetails]] = {}
    for problem in error.errors():
        place = problem["loc"] if problem["type"] == "missing" else present(problem["loc"])
        problems.setdefault(place, []).append(problem)
    for place, found in problems.items():
        yield place, _say(place, found, model, patterns)


def _say(place: Location, problems: list[ErrorDetails], model: type[BaseModel], patterns: Mapping[str, str]) -> str:
    first = problems[0]
    match first["type"]:
        case "value_error":
            # Our own sentence: it says what was got by itself.
            return str(first["ctx"]["error"])
        case "extra_forbidden":
            return f"want a known key, got this one ({_hint(place, model)})"
        case "missing":
            return "want it given, got nothing"
        case "string_pattern_mismatch":
            pattern = first["ctx"]["pattern"]
            return f"want {patterns.get(pattern, pattern)}, got {_got(first['input'])}"
    # Where several types would do, each has said that it is none of its own.
    wanted = list(dict.fromkeys(_wanted(problem) for problem in problems))
    said = " or ".join([", ".join(wanted[:-1]), wanted[-1]] if len(wanted) > 1 else wanted)
    quote = wanted == ["text"] and isinstance(first["input"], bool | int | float | dt.date)
    return f"want {said}, got {_got(first['input'])}{' (in quotes it is text)' if quote else ''}"


def _wanted(problem: ErrorDetails) -> str:
    known = _WANTED.get(problem["type"])
    return problem["msg"] if known is None else known.format(**problem.get("ctx", {}))


def _got(value: Any) -> str:  # noqa: ANN401 - whatever stands in YAML
    """A value as YAML has it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, dt.date) else shown(value)


def _hint(place: Location, model: type[BaseModel]) -> str:
    known = _keys(model, place[:-1])
    close = difflib.get_close_matches(str(place[-1]), known, n=1)
    return f"is '{close[0]}' meant?" if close else f"known are {', '.join(known)}"


def _keys(model: type[BaseModel], place: Location) -> list[str]:
    """The keys that the part of a model at a location takes."""
    for step in place:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if isinstance(step, str) and (found := _model(fields[step].annotation)) is not None:
            model = found
    return [field.alias or name for name, field in model.model_fields.items()]


def _model(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - any annotation
    """The model within an annotation such as `list[Part] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model(part)) is not None), None)
