"""Every CDK context key: its type, default, limits and meaning, read into one frozen object."""

# ruff: noqa: RUF009 - _key is dataclasses.field
from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from threefold.settings import Auth

# https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_PutRetentionPolicy.html
RETENTION_DAYS: Final = (
    *(1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731),
    *(1096, 1827, 2192, 2557, 2922, 3288, 3653),
)
# The name of a bucket is at most 63 characters, of which account, region and our own words take 47.
# https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html: more messages at a time need a window, and a
# FIFO queue gives no more.
MOST_WITHOUT_WINDOW: Final = 10
_STAGE: Final = (r"[a-z][a-z0-9-]{0,14}[a-z0-9]|[a-z]", "at most 16 of a-z, 0-9 and -, a letter first, no - last")
_URL: Final = (r"|https?://\S+", "a URL, or nothing")
_TEMPLATE: Final = (r"[^{}]*\{model\}[^{}]*", "text that holds {model}, and no other { or }")
_ADDRESS: Final = (r"|[^@\s]+@[^@\s]+", "an e-mail address, or nothing")
_KINDS: Final = {str: "text", int: "whole number", float: "number", bool: "true or false"}


class Row(NamedTuple):
    """One line of the documented table of context keys."""

    key: str
    kind: str
    default: str
    meaning: str


def _key(
    default: Any,  # noqa: ANN401 - one of the types of a context value
    meaning: str,
    *,
    choices: tuple[Any, ...] = (),
    limits: tuple[float, float] | None = None,
    pattern: tuple[str, str] | None = None,
) -> Any:  # noqa: ANN401 - dataclasses.field is Any too
    return field(
        default=default,
        metadata={"meaning": meaning, "choices": choices, "limits": limits, "pattern": pattern},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentContext:
    """What one deployment is made of; a key is a field's name in camel case.

    Raises:
        ValueError: keys that do not go together; the message names them.
    """

    stage: str = _key("dev", "stands in every name, so that stages share an account", pattern=_STAGE)
    auth: Auth = _key(
        "iam",
        "who may call over HTTPS: signed AWS callers, holders of a JWT, or (embedded AWS only) anybody",
        choices=("iam", "jwt", "none"),
    )
    jwt_issuer: str = _key("", "the tokens' issuer; needed with `auth=jwt`", pattern=_URL)
    jwt_audience: str = _key("", "the tokens' audiences, comma-separated; needed with `auth=jwt`")
    scope_template: str = _key("predict:{model}", "the OAuth scope that opens a model", pattern=_TEMPLATE)
    operate_scope_template: str = _key(
        "operate:{model}", "the OAuth scope that may cancel and resume a model's jobs", pattern=_TEMPLATE
    )
    cors_origins: str = _key("*", "web origins that may call, comma-separated")
    architecture: str = _key("x86_64", "the functions' processor", choices=("x86_64", "arm64"))
    model_layer_key: str = _key("", "the model layer's zip in the model bucket; `threefold deploy` sets it")
    model_layer_version: str = _key("", "the one object version of that zip; without it only the store is synthesized")
    runtime_layer: str = _key(
        "", "a local zip or folder that holds the runtime layer's `python/`; `threefold deploy` sets it"
    )
    retain: str = _key(
        "auto",
        "whether deleting a stack keeps its data, and is protected; `auto`: in stage prod only",
        choices=("auto", "always", "never"),
    )
    log_retention_days: int = _key(30, "how long logs are kept", choices=RETENTION_DAYS)
    alarm_email: str = _key("", "an address that alarms are sent to; it has to confirm", pattern=_ADDRESS)
    tracing: bool = _key(False, "X-Ray traces of functions and jobs")
    throttle_rate: int = _key(500, "HTTPS requests a second, over all callers", limits=(1, 10_000))
    throttle_burst: int = _key(1000, "HTTPS requests at once, over all callers", limits=(1, 5_000))
    refresh_seconds: float = _key(
        30.0, "the most seconds by which a served release may be out of date", limits=(0, 3600)
    )
    ttl_days: int = _key(90, "how long outcomes stay in the predictions table", limits=(1, 3650))
    stream_batch_size: int = _key(100, "messages that one invocation takes at most", limits=(1, 10_000))
    stream_window_seconds: int = _key(
        1, "how long messages are collected before an invocation takes fewer than it may", limits=(0, 300)
    )
    stream_fifo: bool = _key(
        False,
        "whether the stream door's queues are FIFO: order is kept in each message group, at most 10 messages are taken "
        "at a time, and without a window; to change it makes other queues",
    )
    stream_fan_out: bool = _key(
        False, "whether outcomes go to a topic, of which the predictions queue is one subscriber and others may be more"
    )
    stream_max_concurrency: int = _key(10, "stream functions that run at a time", limits=(2, 1000))
    chunk_concurrency: int = _key(8, "chunks of one job that run at a time", limits=(1, 1000))
    chunk_bytes: int = _key(8_388_608, "the size that a chunk of a CSV aims at", limits=(65_536, 1_073_741_824))
    chunk_rows: int = _key(50_000, "the most rows of a chunk", limits=(1_000, 10_000_000))
    write_budget: int = _key(
        4000,
        "items of up to 1 KB that the workers of one job write to the predictions table a second, together",
        limits=(1, 1_000_000),
    )
    pending_minutes: int = _key(60, "how often records left pending are collected; 0: never", limits=(0, 1440))
    results_days: int = _key(0, "how long result files stay; 0: for good", limits=(0, 3650))
    predict_memory: int = _key(1769, "memory in MB; 1,769 is one vCPU", limits=(128, 10_240))
    api_memory: int = _key(1024, "memory in MB of the function for jobs, uploads and lookups", limits=(128, 10_240))
    batch_memory: int = _key(1769, "memory in MB; 1,769 is one vCPU", limits=(128, 10_240))
    stream_memory: int = _key(1769, "memory in MB; 1,769 is one vCPU", limits=(128, 10_240))
    monitor_memory: int = _key(1769, "memory in MB; 1,769 is one vCPU", limits=(128, 10_240))
    monitor_minutes: int = _key(60, "minutes from one run of all models' gates to the next", limits=(5, 1440))
    # https://docs.aws.amazon.com/lambda/latest/dg/configuration-ephemeral-storage.html
    ephemeral_storage: int = _key(
        512, "MB of each function's `/tmp`, where downloaded packages lie", limits=(512, 10_240)
    )
    predict_reserved_concurrency: int = _key(0, "concurrency kept for this door; 0: none is", limits=(0, 100_000))
    batch_reserved_concurrency: int = _key(
        0, "concurrency kept for, and the most of, this door; 0: none is", limits=(0, 100_000)
    )
    stream_reserved_concurrency: int = _key(
        0, "concurrency kept for, and the most of, this door; 0: none is", limits=(0, 100_000)
    )

    @property
    def origins(self) -> list[str]:
        """The web origins that may call."""
        return _parts(self.cors_origins)

    @property
    def audiences(self) -> list[str]:
        """The tokens' audiences."""
        return _parts(self.jwt_audience)

    def __post_init__(self) -> None:
        if not self.origins:
            raise ValueError(f"context 'corsOrigins': want origins, comma-separated, got '{self.cors_origins}'")
        if self.auth == "jwt" and not (self.jwt_issuer and self.audiences):
            missing = "jwtAudience" if self.jwt_issuer else "jwtIssuer"
            raise ValueError(f"context '{missing}': want it set with auth=jwt, got nothing")
        if self.serves and not (self.model_layer_key and self.runtime_layer):
            missing = "runtimeLayer" if self.model_layer_key else "modelLayerKey"
            raise ValueError(f"context '{missing}': want it set with modelLayerVersion, got nothing")
        if self.write_budget < self.chunk_concurrency:
            raise ValueError(
                f"context 'writeBudget': want at least chunkConcurrency ({self.chunk_concurrency}), "
                f"got {self.write_budget}"
            )
        if 0 < self.batch_reserved_concurrency < self.chunk_concurrency:
            raise ValueError(
                f"context 'batchReservedConcurrency': want 0 or at least chunkConcurrency "
                f"({self.chunk_concurrency}), got {self.batch_reserved_concurrency}"
            )
        if self.stream_batch_size > MOST_WITHOUT_WINDOW and not (self.stream_window_seconds or self.stream_fifo):
            raise ValueError(
                f"context 'streamWindowSeconds': want at least 1 with streamBatchSize above {MOST_WITHOUT_WINDOW}, "
                "got 0"
            )
        if 0 < self.stream_reserved_concurrency < self.stream_max_concurrency:
            raise ValueError(
                f"context 'streamReservedConcurrency': want 0 or at least streamMaxConcurrency "
                f"({self.stream_max_concurrency}), got {self.stream_reserved_concurrency}"
            )

    @property
    def serves(self) -> bool:
        """Whether the doors can be synthesized, not the store alone."""
        return bool(self.model_layer_version)

    @property
    def retains(self) -> bool:
        """Whether data outlive their stack, and are protected from deletion."""
        return self.retain == "always" or (self.retain == "auto" and self.stage == "prod")


def read(found: Mapping[str, Any]) -> DeploymentContext:
    """Read the context of an app; keys of the CDK itself are none of ours.

    Raises:
        ValueError: a value is not what its key takes, or a key is almost one of ours.
    """
    known = {_camel(each.name): each for each in fields(DeploymentContext)}
    for key in found:
        if key not in known and (meant := difflib.get_close_matches(key, known, n=1, cutoff=0.8)):
            raise ValueError(f"context: want a known key, got '{key}' (is '{meant[0]}' meant?)")
    values: dict[str, Any] = {
        each.name: _parse(key, each, found[key]) for key, each in known.items() if found.get(key) is not None
    }
    return DeploymentContext(**values)


def rows() -> list[Row]:
    """The table of all keys, as docs/configuration.md shows it."""
    return [
        Row(_camel(each.name), _wanted(each), _show(each.default), each.metadata["meaning"])
        for each in fields(DeploymentContext)
    ]


def _parse(key: str, each: Any, value: object) -> object:  # noqa: ANN401 - a dataclasses.Field of any type
    kind = type(each.default)
    error = ValueError(f"context '{key}': want {_wanted(each)}, got {value!r}")
    # The command line's values are text; those of cdk.json have types.
    if isinstance(value, bool) or kind is bool:
        text = str(value).lower()
        if kind is not bool or text not in {"true", "false"}:
            raise error
        return text == "true"
    try:
        parsed = kind(cast("Any", value))
    except (TypeError, ValueError):
        raise error from None
    meta = each.metadata
    if (
        (kind is int and isinstance(value, float))
        or (meta["choices"] and parsed not in meta["choices"])
        or (meta["limits"] and not meta["limits"][0] <= parsed <= meta["limits"][1])
        or (meta["pattern"] and not re.fullmatch(meta["pattern"][0], parsed))
    ):
        raise error
    return parsed


def _wanted(each: Any) -> str:  # noqa: ANN401 - a dataclasses.Field of any type
    meta = each.metadata
    if meta["choices"]:
        return "one of " + ", ".join(_show(choice) for choice in meta["choices"])
    if meta["pattern"]:
        return str(meta["pattern"][1])
    kind = _KINDS[type(each.default)]
    return f"{kind} from {meta['limits'][0]} to {meta['limits'][1]}" if meta["limits"] else kind


def _show(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
