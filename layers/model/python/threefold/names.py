"""Names that more than one room uses: metrics, dimensions, routes, objects, stack outputs."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"


def namespace(stage: str) -> str:
    """The CloudWatch namespace of a stage: stages that share an account must not share an alarm."""
    return f"Threefold/{stage}"


class Metric:
    """CloudWatch metric names."""

    PREDICTIONS: Final = "Predictions"
    ABSTAINED: Final = "Abstained"
    REJECTED: Final = "Rejected"
    ERRORS: Final = "Errors"
    LATENCY: Final = "LatencyMs"
    MODEL_LOAD: Final = "ModelLoadMs"
    COLD_START: Final = "ColdStart"
    RELEASE_STALE: Final = "ReleaseStale"
    PACKAGE_REFUSED: Final = "PackageRefused"
    GATE_FAILED: Final = "GateFailed"
    ROLLED_BACK: Final = "RolledBack"
    BATCH_ROWS: Final = "BatchRows"
    STREAM_LAG: Final = "StreamLagMs"
    GIVEN_UP: Final = "GivenUp"
    EXPIRED: Final = "Expired"
    LATE_EVENTS: Final = "LateEvents"


# Errors by the names that Step Functions sees them under: a throttled table or a registry that is away comes back.
RETRYABLE: Final = ("FeaturesUnavailable", "MissingPackage", "NotServable", "RegistryUnreachable", "StorageUnavailable")


# What an upload must be called for the inbox to tell of it.
UPLOAD_SUFFIXES: Final = (".csv", ".csv.gz")
# What stands beside an upload and says how it is to be scored.
SIDECAR_SUFFIX: Final = ".job.json"
# What the lifecycle rule of the results bucket knows a job's working files by, and how long they stay.
WORK_TAG: Final = ("threefold", "work")
WORK_DAYS: Final = 7
# Where records lie in the inbox until they are collected: `pending/<model>/`.
PENDING_PREFIX: Final = "pending/"


# The predictions table's index, and the attribute that is its key.
LOOKUP_INDEX: Final = "lookup"


class Prefix:
    """Key prefixes of the versioned model bucket."""

    PACKAGES: Final = "packages/"
    RELEASES: Final = "releases/"
    MODEL_LAYER: Final = "layers/model/"


class Door:
    """The doors, by the name of their function, their stack and their dimension in metrics."""

    PREDICT: Final = "predict"
    BATCH: Final = "batch"
    STREAM: Final = "stream"
    # What is asked over HTTPS beside predictions; it stands in predict's stack.
    API: Final = "api"


# What watches the packages behind the doors: named as they are, by its function and in metrics, but nobody's way in.
MONITOR: Final = "monitor"


class Dimension:
    """CloudWatch dimension names."""

    DOOR: Final = "door"
    MODEL: Final = "model"
    ROLE: Final = "role"


# In deploy order; each is a stack `threefold-<stage>-<name>`.
STACKS: Final = ("store", Door.PREDICT, Door.BATCH, Door.STREAM, "observability")


def stack_name(stage: str, stack: str) -> str:
    """The CloudFormation name of one of `STACKS`."""
    return f"threefold-{stage}-{stack}"


class Context:
    """CDK context keys; docs/configuration.md has the table."""

    STAGE: Final = "stage"
    AUTH: Final = "auth"
    MODEL_LAYER_KEY: Final = "modelLayerKey"
    MODEL_LAYER_VERSION: Final = "modelLayerVersion"
    RUNTIME_LAYER: Final = "runtimeLayer"
    ARCHITECTURE: Final = "architecture"
    JWT_ISSUER: Final = "jwtIssuer"
    JWT_AUDIENCE: Final = "jwtAudience"


class Output:
    """Stack outputs, which every address is read from."""

    API_URL: Final = "ApiUrl"
    MODEL_BUCKET: Final = "ModelBucket"
    INBOX_BUCKET: Final = "InboxBucket"
    RESULTS_BUCKET: Final = "ResultsBucket"
    REQUESTS_QUEUE_URL: Final = "RequestsQueueUrl"
    PREDICTIONS_QUEUE_URL: Final = "PredictionsQueueUrl"
    DEAD_LETTER_QUEUE_URL: Final = "DeadLetterQueueUrl"
    # Only where the stack has one.
    PREDICTIONS_TOPIC_ARN: Final = "PredictionsTopicArn"
    PREDICTIONS_TABLE: Final = "PredictionsTable"
    JOBS_TABLE: Final = "JobsTable"
    FEATURES_TABLE: Final = "FeaturesTable"
    STATE_MACHINE_ARN: Final = "StateMachineArn"
    LOST_UPLOADS_QUEUE_URL: Final = "LostUploadsQueueUrl"
    ALARM_TOPIC_ARN: Final = "AlarmTopicArn"


# API Gateway's HTTP API routes that the predict function answers; `{model}` and `{version}` are one segment each.
PREDICT_ROUTES: Final = (
    ("GET", "/v2"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    ("GET", "/v2/models/{model}"),
    ("GET", "/v2/models/{model}/ready"),
    ("POST", "/v2/models/{model}/infer"),
    ("GET", "/v2/models/{model}/versions/{version}"),
    ("GET", "/v2/models/{model}/versions/{version}/ready"),
    ("POST", "/v2/models/{model}/versions/{version}/infer"),
    ("POST", "/models/{model}/predictions"),
    ("GET", "/models"),
    ("GET", "/models/{model}"),
)
# The others, which the api function answers; `{job}` is one segment too.
API_ROUTES: Final = (
    ("POST", "/models/{model}/uploads"),
    ("GET", "/models/{model}/jobs"),
    ("GET", "/models/{model}/jobs/{job}"),
    ("POST", "/models/{model}/jobs/{job}/cancel"),
    ("POST", "/models/{model}/jobs/{job}/resume"),
    ("GET", "/models/{model}/jobs/{job}/results"),
    ("GET", "/models/{model}/records"),
    ("GET", "/models/{model}/predictions/{prediction}"),
    ("POST", "/models/{model}/pending"),
    ("GET", "/openapi.json"),
)
OPEN_ROUTES: Final = frozenset({"/v2/health/live", "/v2/health/ready"})
# What a browser may read of an answer, beside its body.
EXPOSED_HEADERS: Final = (
    "x-model-version",
    "x-model-digest",
    "server-timing",
    "x-prediction-id",
    "x-release-stale",
    "x-precomputed",
    "location",
    "retry-after",
    "inference-header-content-length",
)
