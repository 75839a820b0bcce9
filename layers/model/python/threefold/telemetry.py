"""Logs and metrics: Powertools behind the few acts that the doors need."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit

from threefold.names import NAMESPACE, Metric
from threefold.prediction import Status

if TYPE_CHECKING:
    from threefold.prediction import Outcomes
    from threefold.settings import Settings

_UNITS: Final = {
    Metric.LATENCY: MetricUnit.Milliseconds,
    Metric.MODEL_LOAD: MetricUnit.Milliseconds,
    Metric.STREAM_LAG: MetricUnit.Milliseconds,
}
_COUNTED: Final = ((Status.ABSTAINED, Metric.ABSTAINED), (Status.REJECTED, Metric.REJECTED))


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
        self._metrics = Metrics(namespace=NAMESPACE)
        self._pending: dict[tuple[str, str], dict[str, list[float]]] = {}
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
        model, role = outcomes.model, outcomes.parts[0].provenance.role if outcomes.parts else ""
        self.add(Metric.PREDICTIONS, outcomes.count(Status.PREDICTED), model, role)
        for status, metric in _COUNTED:
            if count := outcomes.count(status):
                self.add(metric, count, model, role)

    def flush(self, started: float, **properties: Any) -> None:  # noqa: ANN401 - any JSON value
        """Write the invocation's metrics.

        Args:
            started: when the invocation began, by `time.perf_counter`.
            properties: fields of the log line that are no dimensions.
        """
        pending, self._pending = self._pending or {("", ""): {}}, {}
        latency_ms = (time.perf_counter() - started) * 1000
        for (model, role), found in pending.items():
            self._metrics.add_dimension("door", self._door)
            if model:
                self._metrics.add_dimensions(model=model, door=self._door)
            if role:
                self._metrics.add_dimensions(model=model, role=role)
            if self._cold:
                self._metrics.add_metric(Metric.COLD_START, MetricUnit.Count, 1)
                self._cold = False
            self._metrics.add_metric(Metric.LATENCY, MetricUnit.Milliseconds, latency_ms)
            for metric, values in found.items():
                for value in values:
                    self._metrics.add_metric(metric, _UNITS.get(metric, MetricUnit.Count), value)
            for name, value in properties.items():
                self._metrics.add_metadata(name, value)
            self._metrics.flush_metrics()
