"""The one place that touches ministack's private parts: it replaces the Python worker, or refuses to start."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import logging
from typing import TYPE_CHECKING, Any, Final

from ministack.core import lambda_runtime
from ministack.services import lambda_svc

from . import custom_resources, emf
from .content import ContentStore, lay_out_runtime
from .environment import Environment, Outcome, Specification
from .pool import DEFAULT_CONCURRENCY, Pool, State, ThrottledError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_log = logging.getLogger("threefold.plug")
# ruff: noqa: SLF001 -- nothing of what is used here is public, so only the release that was read and tried will do.
MINISTACK_VERSION: Final = "1.5.33"
_SEAM: Final = {
    "_execute_function_warm": ["func", "event", "request_id"],
    "_resolve_layer_zip": ["attachment"],
    "_throttle_response": ["reason_code", "msg", "retry_after"],
    "_runtime_env_vars": ["config"],
}
# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
REQUEST_LIMIT_BYTES: Final = 6_291_456
_DEFAULT_MEMORY_MEGABYTES: Final = 128
_DEFAULT_TIMEOUT_SECONDS: Final = 3


class SeamError(Exception):
    """Another ministack than the one that the executor was made for."""


def check() -> None:
    """Make sure that every private part used here is what it was when it was read.

    Raises:
        SeamError: the version or a signature differs; running on would silently change what an invocation means.
    """
    version = importlib.metadata.version("ministack")
    if version != MINISTACK_VERSION:
        message = f"ministack: want {MINISTACK_VERSION}, got {version}"
        raise SeamError(message)
    for name, wanted in _SEAM.items():
        found = getattr(lambda_svc, name, None)
        got = list(inspect.signature(found).parameters) if callable(found) else None
        if got != wanted:
            message = f"ministack.services.lambda_svc.{name}: want the parameters {wanted}, got {got}"
            raise SeamError(message)
    if not callable(getattr(lambda_runtime, "execution_credentials", None)):
        message = "ministack.core.lambda_runtime.execution_credentials: want a function, got none"
        raise SeamError(message)


class Executor:
    """Runs ministack's Python functions in environments of our own."""

    def __init__(self, root: Path, port: int) -> None:
        """Keep everything under `root`; functions find the emulator on the loopback port."""
        self._runtime = lay_out_runtime(root / "runtime")
        self._content = ContentStore(root / "content")
        self._pool = Pool(root / "environments")
        self._publisher = emf.Publisher(port)
        self._endpoint_url = f"http://127.0.0.1:{port}"
        self._others: Callable[..., dict[str, Any]] = lambda_svc._execute_function_warm

    def install(self) -> None:
        """Take the place of ministack's own worker."""
        lambda_svc._execute_function_warm = self.execute

    def close(self) -> None:
        """End all environments."""
        self._pool.close()

    def execute(self, func: dict[str, Any], event: Any, request_id: str) -> dict[str, Any]:  # noqa: ANN401
        """Stand in for `_execute_function_warm`: its arguments, its kind of answer."""
        config = func.get("config") or func
        python = str(config.get("Runtime", "")).startswith("python")
        if not custom_resources.is_request(event):
            return self._run(func, event, request_id) if python else self._others(func, event, request_id)
        if not python and custom_resources.stands_in_for(event):
            return custom_resources.stand_in(event, self._endpoint_url, str(config["FunctionArn"]).split(":")[3])
        result = self._run(func, event, request_id) if python else self._others(func, event, request_id)
        if result.get("error"):
            # A function that cannot answer for itself would leave its stack waiting for an hour.
            custom_resources.answer(event, reason=json.dumps(result.get("body")))
        return result

    def _run(self, func: dict[str, Any], event: Any, request_id: str) -> dict[str, Any]:  # noqa: ANN401
        config = func.get("config") or func
        payload = json.dumps(event, ensure_ascii=False).encode()
        if len(payload) > REQUEST_LIMIT_BYTES:
            if "http" in (event.get("requestContext") or {}):
                # What API Gateway makes of it, in its own words.
                message = json.dumps({"message": "Request Entity Too Large"})
                return {"body": {"statusCode": 413, "body": message}, "log": ""}
            text = f"Request must be smaller than {REQUEST_LIMIT_BYTES} bytes for the InvokeFunction operation"
            return {"body": {"errorType": "RequestTooLargeException", "errorMessage": text}, "error": True, "log": ""}
        arn = str(config["FunctionArn"])
        _, _, _, region, account, _, name, *_ = arn.split(":")
        identity = f"{account}:{region}:{name}"
        concurrency = _reserved_concurrency(func, name)

        def specify() -> Specification:
            return self._specify(config, func["code_zip"], region)

        def call(environment: Environment) -> Outcome:
            return environment.invoke(payload, request_id=request_id, function_arn=arn)

        try:
            outcome = self._pool.invoke(identity, _state(config), specify, call, concurrency=concurrency)
        except ThrottledError:
            reason, text = "ReservedFunctionConcurrentInvocationLimitExceeded", f"Rate Exceeded: {name}"
            return lambda_svc._throttle_response(reason, text)  # type: ignore[no-any-return]
        for line in outcome.log.splitlines():
            for datum in emf.parse(line, account=account, region=region):
                self._publisher.put(datum)
        return _as_ministack_has_it(outcome)

    def _specify(self, config: dict[str, Any], code: bytes, region: str) -> Specification:
        name = str(config["FunctionName"])
        memory = int(config.get("MemorySize") or _DEFAULT_MEMORY_MEGABYTES)
        version = str(config.get("Version") or "$LATEST")
        layers = []
        for attachment in config.get("Layers") or ():
            archive = lambda_svc._resolve_layer_zip(attachment)
            if archive:
                key = attachment["Arn"] if isinstance(attachment, dict) else attachment
                layers.append(self._content.unpack(f"layer {key}", archive))
        credentials = lambda_runtime.execution_credentials(config)
        group = (config.get("LoggingConfig") or {}).get("LogGroup") or f"/aws/lambda/{name}"
        return Specification(
            function=name,
            version=version,
            handler=str(config["Handler"]),
            memory_megabytes=memory,
            timeout_seconds=float(config.get("Timeout") or _DEFAULT_TIMEOUT_SECONDS),
            code=self._content.unpack(f"code {name} {version}", code),
            layers=tuple(layers),
            runtime=self._runtime,
            variables={
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "LANG": "en_US.UTF-8",
                "TZ": ":UTC",
                # The function's own variables may be set to anything but Lambda's, which come after them.
                "AWS_ENDPOINT_URL": self._endpoint_url,
                **lambda_svc._runtime_env_vars(config),
                "_HANDLER": str(config["Handler"]),
                "AWS_EXECUTION_ENV": f"AWS_Lambda_{config['Runtime']}",
                "AWS_LAMBDA_FUNCTION_NAME": name,
                "AWS_LAMBDA_FUNCTION_VERSION": version,
                "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(memory),
                "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
                "AWS_LAMBDA_LOG_GROUP_NAME": group,
                "AWS_REGION": region,
                "AWS_DEFAULT_REGION": region,
                # An empty session token would be sent as a header by some SDKs.
                **{variable: value for variable, value in credentials.items() if value},
            },
        )


def _state(config: dict[str, Any]) -> State:
    """Return the version, and all by whose change Lambda itself would replace its environments."""
    layers = tuple(
        attachment["Arn"] if isinstance(attachment, dict) else attachment for attachment in config.get("Layers") or ()
    )
    variables = (config.get("Environment") or {}).get("Variables") or {}
    scalars = tuple(
        config.get(key) for key in ("CodeSha256", "LastModified", "Handler", "Runtime", "MemorySize", "Timeout", "Role")
    )
    return str(config.get("Version") or "$LATEST"), (*scalars, layers, tuple(sorted(variables.items())))


def _reserved_concurrency(func: dict[str, Any], name: str) -> int:
    # A version's record does not carry it: it belongs to the function.
    reserved = func.get("concurrency") or (lambda_svc._functions.get(name) or {}).get("concurrency")
    if isinstance(reserved, dict):
        reserved = reserved.get("ReservedConcurrentExecutions")
    return int(reserved) if reserved else DEFAULT_CONCURRENCY


def _as_ministack_has_it(outcome: Outcome) -> dict[str, Any]:
    try:
        body = json.loads(outcome.body)
    except ValueError:
        # A handler that returns bytes is passed on as it is.
        return {"body": outcome.body, "raw_payload": True, "log": outcome.log, "log_source": "rie"}
    answer = {"body": body, "log": outcome.log, "log_source": "rie"}
    if outcome.failed:
        answer["error"] = True
    return answer
