"""Sending to SQS and SNS in batches: by count and by size, many calls at a time, partial failures tried again."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html
MESSAGES_PER_CALL: Final = 10
BYTES_PER_CALL: Final = 1_048_576
# https://docs.aws.amazon.com/sns/latest/api/API_PublishBatch.html
TOPIC_BYTES_PER_CALL: Final = 262_144
_FIRST_WAIT_SECONDS: Final = 0.05
_LONGEST_WAIT_SECONDS: Final = 2.0


class QueueSender:
    """Sends message bodies to one queue."""

    bytes_per_call = BYTES_PER_CALL

    def __init__(
        self,
        client: Any,  # noqa: ANN401 - of the one service or the other
        address: str,
        *,
        target: str,
        threads: int = 8,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Make a sender.

        Args:
            client: an SQS client with as many connections as threads.
            address: where to: the queue's URL.
            target: what it is called where something is said of it.
            threads: calls in flight at a time.
            sleep: waits between tries.
        """
        self._client = client
        self._address = address
        self.target = target
        self._threads = threads
        self._sleep = sleep

    def send(
        self, bodies: Sequence[bytes], *, deadline: float, more: Sequence[Mapping[str, Any]] = ()
    ) -> dict[int, str]:
        """Send bodies; what is reported as failed is tried again until the deadline.

        Args:
            bodies: JSON.
            deadline: on the monotonic clock.
            more: what else each entry has, like its message attributes; nothing if it is empty.

        Returns:
            By position, why a body was not sent.
        """
        return self._send(range(len(bodies)), bodies, more, deadline)

    def send_in_order(
        self,
        bodies: Sequence[bytes],
        *,
        deadline: float,
        more: Sequence[Mapping[str, Any]],
    ) -> dict[int, str]:
        """Send bodies to a FIFO queue or topic; of each group one at a time, and none after one that failed.

        Args:
            bodies: JSON.
            deadline: on the monotonic clock.
            more: what else each entry has: its group and its deduplication id.

        Returns:
            By position, why a body was not sent.
        """
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for position, order in enumerate(more):
            groups[order["MessageGroupId"]].append(position)
        failed: dict[int, str] = {}
        stopped: set[int] = set()
        for turn in zip_longest(*groups.values()):
            due = {position: group for group, position in enumerate(turn) if position is not None}
            failed |= {i: f"{self.target}: an earlier one of its group was not sent" for i in due if due[i] in stopped}
            lost = self._send([i for i in due if due[i] not in stopped], bodies, more, deadline)
            stopped |= {due[i] for i in lost}
            failed |= lost
        return failed

    def _send(
        self, positions: Sequence[int], bodies: Sequence[bytes], more: Sequence[Mapping[str, Any]], deadline: float
    ) -> dict[int, str]:
        calls = list(_calls(positions, bodies, self.bytes_per_call))
        if len(calls) <= 1:
            return {
                position: why
                for call in calls
                for position, why in self._send_call(call, bodies, more, deadline).items()
            }
        with ThreadPoolExecutor(min(self._threads, len(calls))) as pool:
            parts = pool.map(lambda call: self._send_call(call, bodies, more, deadline), calls)
            return {position: why for part in parts for position, why in part.items()}

    def _send_call(
        self, positions: list[int], bodies: Sequence[bytes], more: Sequence[Mapping[str, Any]], deadline: float
    ) -> dict[int, str]:
        wait = _FIRST_WAIT_SECONDS
        while True:
            entries = [self._entry(i, _text(bodies[i])) | dict(more[i] if more else {}) for i in positions]
            failures: dict[int, dict[str, Any]]
            try:
                response = self._post(entries)
                failures = {int(failure["Id"]): failure for failure in response.get("Failed", [])}
            except (BotoCoreError, ClientError) as error:
                failures = {i: {"Code": type(error).__name__, "SenderFault": False} for i in positions}
            if not failures:
                return {}
            # A sender's fault stays one; all else may pass.
            retried = [i for i, failure in failures.items() if not failure["SenderFault"]]
            if not retried or time.monotonic() + wait > deadline:
                return {i: f"{self.target}: {failure['Code']}" for i, failure in failures.items()}
            lost = {i: f"{self.target}: {failure['Code']}" for i, failure in failures.items() if i not in retried}
            if lost:
                return lost | self._send_call(retried, bodies, more, deadline)
            self._sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
            positions = retried

    def _entry(self, position: int, body: str) -> dict[str, Any]:
        return {"Id": str(position), "MessageBody": body}

    def _post(self, entries: list[dict[str, Any]]) -> Any:  # noqa: ANN401 - boto3's answer
        return self._client.send_message_batch(QueueUrl=self._address, Entries=entries)


class TopicSender(QueueSender):
    """Publishes message bodies to one topic of SNS, of which the predictions queue is one subscriber."""

    bytes_per_call = TOPIC_BYTES_PER_CALL

    def _entry(self, position: int, body: str) -> dict[str, Any]:
        return {"Id": str(position), "Message": body}

    def _post(self, entries: list[dict[str, Any]]) -> Any:  # noqa: ANN401 - boto3's answer
        return self._client.publish_batch(TopicArn=self._address, PublishBatchRequestEntries=entries)


def _text(body: bytes) -> str:
    """A JSON text as SQS takes it, which is what XML 1.0 takes: two of the characters that JSON's writers leave alone.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
    """
    return body.decode().replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")


def _calls(positions: Sequence[int], bodies: Sequence[bytes], bytes_per_call: int) -> Iterator[list[int]]:
    """Positions that fit into one call each."""
    call: list[int] = []
    size = 0
    for i in positions:
        if call and (len(call) == MESSAGES_PER_CALL or size + len(bodies[i]) > bytes_per_call):
            yield call
            call, size = [], 0
        call.append(i)
        size += len(bodies[i])
    if call:
        yield call
