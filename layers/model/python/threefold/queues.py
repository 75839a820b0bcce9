"""Sending to SQS in batches: by count and by size, many calls at a time, partial failures tried again."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mypy_boto3_sqs import SQSClient

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html
MESSAGES_PER_CALL: Final = 10
BYTES_PER_CALL: Final = 1_048_576
_FIRST_WAIT_SECONDS: Final = 0.05
_LONGEST_WAIT_SECONDS: Final = 2.0


class QueueSender:
    """Sends message bodies to one queue."""

    def __init__(
        self, client: SQSClient, queue_url: str, *, threads: int = 8, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Make a sender.

        Args:
            client: an SQS client with as many connections as threads.
            queue_url: where to.
            threads: calls in flight at a time.
            sleep: waits between tries.
        """
        self._client = client
        self._queue_url = queue_url
        self._threads = threads
        self._sleep = sleep

    def send(self, bodies: Sequence[bytes], *, deadline: float) -> dict[int, str]:
        """Send bodies; what SQS reports as failed is tried again until the deadline.

        Args:
            bodies: UTF-8 texts.
            deadline: on the monotonic clock.

        Returns:
            By position, why a body was not sent.
        """
        calls = list(_calls(bodies))
        if len(calls) <= 1:
            return {
                position: why for call in calls for position, why in self._send_call(call, bodies, deadline).items()
            }
        with ThreadPoolExecutor(min(self._threads, len(calls))) as pool:
            parts = pool.map(lambda call: self._send_call(call, bodies, deadline), calls)
            return {position: why for part in parts for position, why in part.items()}

    def _send_call(self, positions: list[int], bodies: Sequence[bytes], deadline: float) -> dict[int, str]:
        wait = _FIRST_WAIT_SECONDS
        while True:
            entries: Any = [{"Id": str(i), "MessageBody": bodies[i].decode()} for i in positions]
            try:
                response = self._client.send_message_batch(QueueUrl=self._queue_url, Entries=entries)
                failures = {int(failure["Id"]): failure for failure in response.get("Failed", [])}
            except (BotoCoreError, ClientError) as error:
                failures = {i: {"Code": type(error).__name__, "SenderFault": False} for i in positions}  # type: ignore[typeddict-item]
            if not failures:
                return {}
            # A sender's fault stays one; all else may pass.
            retried = [i for i, failure in failures.items() if not failure["SenderFault"]]
            if not retried or time.monotonic() + wait > deadline:
                return {i: f"predictions queue: {failure['Code']}" for i, failure in failures.items()}
            lost = {i: f"predictions queue: {failure['Code']}" for i, failure in failures.items() if i not in retried}
            if lost:
                return lost | self._send_call(retried, bodies, deadline)
            self._sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
            positions = retried


def _calls(bodies: Sequence[bytes]) -> Iterator[list[int]]:
    """Positions that fit into one call each."""
    call: list[int] = []
    size = 0
    for i, body in enumerate(bodies):
        if call and (len(call) == MESSAGES_PER_CALL or size + len(body) > BYTES_PER_CALL):
            yield call
            call, size = [], 0
        call.append(i)
        size += len(body)
    if call:
        yield call
