"""The OpenAPI document: the scoring routes and each model's records, put to what the api function says of itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from threefold.signature import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from threefold.package import Manifest
    from threefold.settings import Auth
    from threefold.signature import Feature

Schema = dict[str, Any]

# What Powertools puts to each operation, and what no answer of ours is.
_FOREIGN: Final = frozenset({"HTTPValidationError", "ValidationError", "ResponseValidationError"})
_SECURITY: Final[Mapping[Auth, Schema]] = {
    "iam": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "AWS Signature Version 4",
        "x-amazon-apigateway-authtype": "awsSigv4",
    },
    "jwt": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
}
_NUMBER_TEXT: Final = {"enum": ["NaN", "Infinity", "-Infinity"]}
_NUMBER: Final = {"anyOf": [{"type": "number"}, _NUMBER_TEXT], "description": "a number; text where it is not finite"}
_LABEL: Final = {"type": ["string", "integer"]}
_TIME: Final = {"type": "string", "format": "date-time"}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Schema, *, optional: Iterable[str] = (), **more: Any) -> Schema:  # noqa: ANN401 - JSON
    left_out = set(optional)
    required = [name for name in properties if name not in left_out]
    return {"type": "object", "properties": properties, "required": required, **more}


def _list(items: Schema, **more: Any) -> Schema:  # noqa: ANN401 - JSON
    return {"type": "array", "items": items, **more}


_TEXT: Final = {"type": "string"}
_PREDICTION: Final = _object(
    {
        "id": _TEXT,
        "model": _TEXT,
        "version": _TEXT,
        "digest": _TEXT,
        "role": {"enum": ["champion", "canary", "previous", "fallback"]},
        "release": _TEXT,
        "status": {"enum": ["predicted", "abstained", "held", "rejected", "expired", "pending"]},
        "label": _LABEL,
        "value": _NUMBER,
        "score": {"anyOf": [_NUMBER, {"type": "null"}]},
        "options": _list(_object({"label": _LABEL, "score": _NUMBER})),
        "tensors": _list(_ref("Tensor")),
        "reasons": _list(_TEXT),
        "features": {"type": "object", "description": "what was looked up, by feature; null for nothing known"},
        "code": _TEXT,
        "message": _TEXT,
        "key": _TEXT,
        "at": _TIME,
        "runtime": _TEXT,
        "pointer": {"type": "string", "description": "where the whole of a large outcome stands in the results bucket"},
    },
    optional=(
        *("at", "pointer"),
        *("version", "digest", "role", "release", "label", "value", "score", "options", "tensors"),
        *("reasons", "features", "code", "message", "key", "runtime"),
    ),
    description="what one record got",
)
_TENSOR: Final = _object(
    {
        "name": _TEXT,
        "datatype": {"enum": list(DTYPES)},
        "shape": _list({"type": "integer", "minimum": 0}),
        "data": {"type": "array", "description": "row-major, flat or nested"},
    },
    description="a tensor of the Open Inference Protocol",
)
_SPEC: Final = _object(
    {"name": _TEXT, "datatype": {"enum": list(DTYPES)}, "shape": _list({"type": "integer", "minimum": -1})}
)
_VERSION: Final = _object({"name": _TEXT, "version": _TEXT, "digest": _TEXT})
_SCHEMAS: Final[Mapping[str, Schema]] = {
    "Error": _object(
        {"error": {"type": "string", "description": "what, wanted, got"}, "code": _TEXT},
        description="an error of ours; API Gateway's own are {message}",
    ),
    "Prediction": _PREDICTION,
    "Predictions": _object({"predictions": _list(_ref("Prediction"))}),
    "Records": _object({"records": _list({"type": "object"}, minItems=1)}),
    "Tensor": _TENSOR,
    "TensorSpec": _SPEC,
    "InferenceRequest": _object(
        {"id": _TEXT, "inputs": _list(_ref("Tensor"), minItems=1), "outputs": _list(_object({"name": _TEXT}))},
        optional=("id", "outputs"),
    ),
    "InferenceResponse": _object(
        {"model_name": _TEXT, "model_version": _TEXT, "id": _TEXT, "outputs": _list(_ref("Tensor"))}
    ),
    "Server": _object({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)}),
    "Live": _object({"live": {"type": "boolean"}}),
    "Ready": _object({"ready": {"type": "boolean"}}),
    "ModelReady": _object({"name": _TEXT, "ready": {"type": "boolean"}, "stale": {"type": "boolean"}}),
    "ModelMetadata": _object(
        {
            "name": _TEXT,
            "versions": _list(_TEXT),
            "platform": _TEXT,
            "inputs": _list(_ref("TensorSpec")),
            "outputs": _list(_ref("TensorSpec")),
        }
    ),
    "Models": _object(
        {"models": _list({"anyOf": [_VERSION, _object({"name": _TEXT, "error": _TEXT, "code": _TEXT})]})}
    ),
    "Model": _object(
        {
            "name": _TEXT,
            "version": _TEXT,
            "description": _TEXT,
            "key": {"type": ["string", "null"]},
            "digest": _TEXT,
            **{part: {"type": "object"} for part in ("signature", "output", "quality", "release")},
        }
    ),
}
# (method, path): what it is called and does, the schema of its body if it has one, and that of its answer.
_SCORING: Final[Mapping[tuple[str, str], tuple[str, str, str | None, str]]] = {
    ("GET", "/v2"): ("server", "The server and its protocol", None, "Server"),
    ("GET", "/v2/health/live"): ("live", "Whether the function runs", None, "Live"),
    ("GET", "/v2/health/ready"): ("ready", "Whether the list of models can be had", None, "Ready"),
    ("GET", "/v2/models/{model}"): ("metadata", "A model's tensors", None, "ModelMetadata"),
    ("GET", "/v2/models/{model}/ready"): ("model_ready", "Whether a model can be served", None, "ModelReady"),
    ("POST", "/v2/models/{model}/infer"): ("infer", "Tensors for tensors", "InferenceRequest", "InferenceResponse"),
    ("GET", "/v2/models/{model}/versions/{version}"): (
        *("version_metadata", "The tensors of one version", None, "ModelMetadata"),
    ),
    ("GET", "/v2/models/{model}/versions/{version}/ready"): (
        *("version_ready", "Whether one version can be served", None, "ModelReady"),
    ),
    ("POST", "/v2/models/{model}/versions/{version}/infer"): (
        *("version_infer", "Tensors for tensors, by one version", "InferenceRequest", "InferenceResponse"),
    ),
    ("POST", "/models/{model}/predictions"): ("predict", "Predictions for records", "Records", "Predictions"),
    ("GET", "/models"): ("models", "The models, each with its champion", None, "Models"),
    ("GET", "/models/{model}"): ("model", "A model's signature, quality and release", None, "Model"),
}
_OPEN: Final = frozenset({"/v2/health/live", "/v2/health/ready"})


def complete(document: Mapping[str, Any], manifests: Iterable[Manifest], auth: Auth) -> dict[str, Any]:
    """The whole document.

    A path has one schema for all models, so that each model that takes records gets paths of its own beside, with its
    name written out; OpenAPI prefers those.

    Args:
        document: of the api function's routes alone, as Powertools writes it.
        manifests: of the models that the reader may know of.
        auth: how callers are checked.
    """
    components = document.get("components", {})
    schemas = {name: schema for name, schema in components.get("schemas", {}).items() if name not in _FOREIGN}
    schemas |= _SCHEMAS
    paths = {
        path: {method: _with_errors(operation) for method, operation in item.items()}
        for path, item in document["paths"].items()
    }
    for (method, path), (name, summary, body, answer) in _SCORING.items():
        paths.setdefault(path, {})[method.lower()] = _operation(name, summary, path, body, answer)
    paths["/models/{model}/predictions"]["post"] = _deferrable(paths["/models/{model}/predictions"]["post"])
    for manifest in manifests:
        if manifest.signature.features:
            model = manifest.name
            schemas[f"{model}.record"] = record_schema(manifest)
            schemas[f"{model}.records"] = _object({"records": _list(_ref(f"{model}.record"), minItems=1)})
            for act in ("predictions", "pending"):
                paths[f"/models/{model}/{act}"] = {"post": _of_model(paths[f"/models/{{model}}/{act}"]["post"], model)}
    whole: dict[str, Any] = {**document, "paths": paths, "components": {**components, "schemas": schemas}}
    if (scheme := _SECURITY.get(auth)) is not None:
        whole["components"]["securitySchemes"] = {auth: scheme}
        whole["security"] = [{auth: []}]
        for path in _OPEN:
            paths[path]["get"]["security"] = []
    return whole


def record_schema(manifest: Manifest) -> Schema:
    """A model's record as JSON Schema: its features, what others are looked up by, and its key, if it declares one."""
    features = manifest.signature.own
    properties = {feature.name: _feature_schema(feature) for feature in features}
    if manifest.key is not None and manifest.key not in properties:
        properties[manifest.key] = {"type": ["string", "number", "null"], "description": "the record's own id"}
    for name, meaning in _asked(manifest):
        properties.setdefault(name, {"type": ["string", "number", "null"], "description": meaning})
    return {
        "type": "object",
        "title": f"a record of {manifest.name} {manifest.version}",
        "properties": properties,
        "required": [feature.name for feature in features if feature.missing is None],
    }


def _asked(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """The fields that features are looked up by."""
    signature = manifest.signature
    for feature in signature.features:
        if feature.source is not None:
            yield feature.source.entity, f"whose it is; '{feature.name}' is looked up by it"
    for name, source in signature.windows:
        if source.of:
            yield source.of, f"'{name}' is made of it"
    if manifest.time is not None and signature.online:
        yield manifest.time, "when it happened: ISO 8601, or milliseconds since 1970"


def _feature_schema(feature: Feature) -> Schema:
    kind = {"bool": "boolean", "string": "string"}.get(feature.type)
    kind = kind or ("integer" if feature.type.startswith("int") else "number")
    optional = feature.missing is not None
    schema: Schema = {"type": [kind, "null"] if optional else kind}
    notes = [text for text in (feature.description, feature.unit and f"in {feature.unit}") if text]
    if feature.allowed is not None:
        schema["enum"] = [*feature.allowed, *([None] if optional else [])]
    if feature.outside == "error":
        schema |= {
            word: limit
            for word, limit in (("minimum", feature.min), ("maximum", feature.max))
            if limit is not None and math.isfinite(limit)
        }
    elif feature.min is not None or feature.max is not None:
        notes.append(f"outside of [{feature.min}, {feature.max}] it is flagged")
    # Only NaN, for which JSON has no word, differs from itself.
    if optional and feature.missing == feature.missing:
        schema["default"] = feature.missing
    if notes:
        schema["description"] = "; ".join(notes)
    return schema


def _operation(name: str, summary: str, path: str, body: str | None, answer: str) -> Schema:
    operation: Schema = {"operationId": name, "summary": summary}
    parameters = [part.strip("{}") for part in path.split("/") if part.startswith("{")]
    if parameters:
        operation["parameters"] = [
            {"name": parameter, "in": "path", "required": True, "schema": _TEXT} for parameter in parameters
        ]
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
    content = {"application/json": {"schema": _ref(answer)}}
    return _with_errors({**operation, "responses": {"200": {"description": "it is done", "content": content}}})


def _deferrable(operation: Schema) -> Schema:
    """An operation whose answer may be left for later."""
    mode = {"name": "mode", "in": "query", "schema": {"enum": ["sync", "async"], "default": "sync"}}
    content = {"application/json": {"schema": _ref("Predictions")}}
    waiting = {"description": "`async`: they wait to be scored, and are had by their ids", "content": content}
    return {
        **operation,
        "parameters": [*operation.get("parameters", []), mode],
        "responses": {**operation["responses"], "202": waiting},
    }


def _with_errors(operation: Schema) -> Schema:
    """An operation that answers as it says or with an error, which has one form."""
    responses = {status: response for status, response in operation["responses"].items() if status.startswith("2")}
    content = {"application/json": {"schema": _ref("Error")}}
    return {**operation, "responses": {**responses, "default": {"description": "an error", "content": content}}}


def _of_model(operation: Schema, model: str) -> Schema:
    """An operation on records with one model's own."""
    own = {name: part for name, part in operation.items() if name != "parameters"}
    if asked := [one for one in operation.get("parameters", []) if one["in"] == "query"]:
        own["parameters"] = asked
    body = {"required": True, "content": {"application/json": {"schema": _ref(f"{model}.records")}}}
    return {
        **own,
        "operationId": f"{operation['operationId']}_{model}",
        "summary": f"{operation['summary']}: {model}",
        "requestBody": body,
    }
