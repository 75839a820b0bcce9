"""Turns embedded-metric-format log lines into CloudWatch metrics, which the emulator itself does not."""

from __future__ import annotations

import http.client
import json
import logging
import queue
import threading
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger("threefold.emf")
# https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_PutMetricData.html: at most 1,000.
_DATUMS_PER_CALL: Final = 500
_TIMEOUT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Datum:
    """One metric of one dimension set, as PutMetricData takes it."""

    account: str
    region: str
    namespace: str
    body: dict[str, Any]


def parse(line: str, *, account: str, region: str) -> Iterator[Datum]:
    """Yield what CloudWatch would extract from one log line: nothing when it is not in the format.

    The format:
    https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
    """
    if '"_aws"' not in line or "CloudWatchMetrics" not in line:
        return
    try:
        document = json.loads(line[line.index("{") :])
        meta = document["_aws"]
        for directive in meta["CloudWatchMetrics"]:
            for names in directive.get("Dimensions") or [[]]:
                dimensions = [{"Name": name, "Value": str(document[name])} for name in names]
                for metric in directive["Metrics"]:
                    value = document[metric["Name"]]
                    body = {
                        "MetricName": metric["Name"],
                        "Unit": metric.get("Unit", "None"),
                        "Timestamp": meta["Timestamp"] / 1000,
                        "Dimensions": dimensions,
                        **({"Values": value} if isinstance(value, list) else {"Value": value}),
                    }
                    yield Datum(account, region, directive["Namespace"], body)
    except (ValueError, KeyError, TypeError, AttributeError):
        # CloudWatch too keeps a malformed line as a plain log line.
        _log.debug("malformed metric line ignored")


class Publisher:
    """Sends data to the emulator's own CloudWatch from a thread of its own, off the invocations' path."""

    def __init__(self, port: int) -> None:
        """Send to the emulator on this loopback port."""
        self._port = port
        self._queue: queue.SimpleQueue[Datum] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="threefold-emf", daemon=True).start()

    def put(self, datum: Datum) -> None:
        """Queue one datum."""
        self._queue.put(datum)

    def _run(self) -> None:
        while True:
            data = [self._queue.get()]
            while not self._queue.empty():
                data.append(self._queue.get())
            groups: defaultdict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
            for datum in data:
                groups[datum.account, datum.region, datum.namespace].append(datum.body)
            for group, bodies in groups.items():
                for start in range(0, len(bodies), _DATUMS_PER_CALL):
                    try:
                        self._send(*group, bodies[start : start + _DATUMS_PER_CALL])
                    except (OSError, http.client.HTTPException):
                        _log.exception("metrics lost")

    def _send(self, account: str, region: str, namespace: str, bodies: list[dict[str, Any]]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_SECONDS)
        try:
            scope = f"{account}/20200101/{region}/monitoring/aws4_request"
            connection.request(
                "POST",
                "/",
                json.dumps({"Namespace": namespace, "MetricData": bodies}),
                {
                    "Content-Type": "application/x-amz-json-1.0",
                    "X-Amz-Target": "GraniteServiceVersion20100801.PutMetricData",
                    "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=local",
                },
            )
            response = connection.getresponse()
            answer = response.read()
            if response.status != http.client.OK:
                _log.error("metrics refused: %s %s", response.status, answer[:500])
        finally:
            connection.close()
