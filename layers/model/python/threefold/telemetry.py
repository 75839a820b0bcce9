"""Logs and metrics: Powertools behind the few acts that the doors need."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import orjson
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.metrics.functions import is_metrics_disabled
from aws_lambda_powertools.metrics.provider.cloudwatch_emf.constants import MAX_METRICS

from threefold.names import Metric, namespace

if TYPE_CHECKING:
    from threefold.prediction import Outcomes
    from threefold.settings import Settings

_UNITS: Final = {
    Metric.LATENCY: MetricUnit.Milliseconds,
    Metric.MODEL_LOAD: MetricUnit.Milliseconds,
    Metric.STREAM_LAG: MetricUnit.Milliseconds,
}


class Telemetry:
    """One function's logs and metrics.

    Metrics are collected during an invocation and written as one EMF line a model, with the dimension sets [door],
    [model, door] and [model, role]. Only models that have a release become a dimension: a caller who makes up names
    must not make up metrics.
    """

    def __init__(self, settings: Settings) -> None:
        """Make the logger and the metrics of a door."""
        self.logger = Logger(service=f"threefold-{settings.door}")
        self._door = settings.door
        self._metrics = Metrics(namespace=namespace(settings.stage))
        self._pending: dict[tuple[str, str], dict[str, list[float]]] = {}
        self._disabled = is_metrics_disabled()
        self._forms: dict[tuple[str, ...], tuple[orjson.Fragment, dict[str, Any]]] = {}
        self._cold = True

    def add(self, metric: str, value: float, model: str = "", role: str = "") -> None:
        """Note a metric of this invocation.

        Args:
            metric: one of `names.Metric`.
            value: a count, or milliseconds.
            model: a model that has a release, or nothing.
            role: who answered, if that is known.
        """
        self._pending.setdefault((model, role), {}).setdefault(metric, []).append(value)

    def outcomes(self, outcomes: Outcomes) -> None:
        """Note how a request's records ended."""
        for part in outcomes.parts:
            model, role = outcomes.model, part.provenance.role
            abstained = 0 if part.abstained is None else int(part.abstained.sum())
            self.add(Metric.PREDICTIONS, part.size - abstained, model, role)
            for metric, count in ((Metric.ABSTAINED, abstained), (Metric.REJECTED, len(part.rejected))):
                if count:
                    self.add(metric, count, model, role)

    def flush(self, started: float, **properties: Any) -> None:  # noqa: ANN401 - any JSON value
        """Write the invocation's metrics.

        Args:
            started: when the invocation began, by `time.perf_counter`.
            properties: fields of the log line that are no dimensions.
        """
        pending, self._pending = self._pending or {("", ""): {}}, {}
        latency_ms = (time.perf_counter() - started) * 1000
        answered = {model for model, role in pending if role}
        for (model, role), found in pending.items():
            # Once a model and role: a line of what else happened to a model that answered would count it again.
            if role or model not in answered:
                found[Metric.LATENCY] = [latency_ms]
            if self._cold:
                found[Metric.COLD_START] = [1]
                self._cold = False
            if max(map(len, found.values())) >= MAX_METRICS:
                self._describe(model, role, found)
                for name, value in properties.items():
                    self._metrics.add_metadata(name, value)
                self._metrics.flush_metrics()
            elif not self._disabled:
                print(self._line(model, role, found, properties))  # noqa: T201 - CloudWatch reads standard output

    def _line(self, model: str, role: str, found: dict[str, list[float]], properties: dict[str, Any]) -> str:
        """One EMF line, as Powertools would write it.

        Powertools says once what a line of this form declares: it takes 20 µs, more than a prediction. Then only the
        values change.
        """
        form = (model, role, *found)
        declared = self._forms.get(form)
        if declared is None:
            self._describe(model, role, found)
            document: dict[str, Any] = {**self._metrics.serialize_metric_set()}
            self._metrics.clear_metrics()
            directive = orjson.Fragment(orjson.dumps(document["_aws"]["CloudWatchMetrics"]))
            dimensions = {name: value for name, value in document.items() if name != "_aws" and name not in found}
            declared = self._forms[form] = (directive, dimensions)
        directive, dimensions = declared
        head = {"Timestamp": time.time_ns() // 1_000_000, "CloudWatchMetrics": directive}
        return orjson.dumps({"_aws": head, **dimensions, **properties, **found}).decode()

    def _describe(self, model: str, role: str, found: dict[str, list[float]]) -> None:
        self._metrics.add_dimension("door", self._door)
        if model:
            self._metrics.add_dimensions(model=model, door=self._door)
        if role:
            self._metrics.add_dimensions(model=model, role=role)
        for metric, values in found.items():
            for value in values:
                self._metrics.add_metric(metric, _UNITS.get(metric, MetricUnit.Count), value)
