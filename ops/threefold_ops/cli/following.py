"""How a job is followed: a bar on a terminal, a line now and then elsewhere, and Ctrl-C, which stops nothing else."""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import typer
from botocore.exceptions import BotoCoreError, ClientError
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from threefold.jobs import JobState
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from threefold.chunks import Counts
    from threefold.items import Values
    from threefold_ops.doors import Inbox

# How often a line is written where no bar can be drawn.
LINE_SECONDS: Final = 5.0
# What takes less than moments needs no bar.
SHOWN_ABOVE_BYTES: Final = 8 * 1000**2
INTERRUPTED: Final = 130


class Pace:
    """How fast something advances since it was first seen, and how long the rest takes at that."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start at the first look."""
        self._clock = clock
        self._first: tuple[float, int] | None = None

    def look(self, done: int, total: int) -> tuple[float, float] | None:
        """Units a second, and seconds left; None while there is nothing to tell it from."""
        now = self._clock()
        if self._first is None:
            self._first = now, done
        seconds, advanced = now - self._first[0], done - self._first[1]
        if seconds <= 0 or advanced <= 0:
            return None
        return advanced / seconds, max(0, total - done) * seconds / advanced


class Board:
    """Where progress is shown: state, how much of how much, and what there is to say of it."""

    def __init__(self, console: Console, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """Make a board.

        Args:
            console: where to write.
            quiet: show nothing.
            clock: seconds that never go back.
        """
        self._console, self._quiet, self._clock = console, quiet, clock
        self._written: float | None = None
        self._last = ""

    @contextmanager
    def open(self) -> Iterator[Callable[[str, int, int | None, str], None]]:
        """Show progress; the function that is given takes the state, what is done, of how much, and more words."""
        if self._quiet or not self._console.is_terminal:
            yield self._line
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"))
        with Progress(*columns, TimeElapsedColumn(), console=self._console) as progress:
            task = progress.add_task("waiting", total=None, words="")
            yield lambda state, done, total, words: progress.update(
                task, description=state, completed=done, total=total, words=words
            )

    def _line(self, state: str, _done: int, _total: int | None, words: str) -> None:
        line, now = f"{state}: {words}" if words else state, self._clock()
        if self._quiet or line == self._last or (self._written is not None and now < self._written + LINE_SECONDS):
            return
        self._written, self._last = now, line
        self._console.print(line)


@contextmanager
def uploading(board: Board, size_bytes: int) -> Iterator[Callable[[int], None]]:
    """Show how an upload goes, if it is a large one."""
    if size_bytes < SHOWN_ABOVE_BYTES:
        yield lambda _count: None
        return
    pace, sent = Pace(), 0
    with board.open() as show:

        def moved(count: int) -> None:
            nonlocal sent
            # What is sent once more is told once more.
            sent = min(size_bytes, sent + count)
            words, found = f"{decimal(sent)} of {decimal(size_bytes)}", pace.look(sent, size_bytes)
            if found:
                words += f", {decimal(int(found[0]))}/s, {_left(found[1])}"
            show("uploading", sent, size_bytes, words)

        yield moved


def follow(
    inbox: Inbox, job: str, board: Board, *, timeout_seconds: float | None, console: Console, where: str
) -> Values:
    """Follow a job until it has ended; Ctrl-C stops that alone.

    Args:
        inbox: the batch door.
        job: the job's id.
        board: where its progress is shown.
        timeout_seconds: how long; None for as long as it takes.
        console: where it is said that following was stopped.
        where: what a command needs to find the job's system: its options, with a space before.

    Raises:
        OperatorError: it has not ended in time, or AWS does not answer.
        typer.Exit: on Ctrl-C.
    """
    look = f"'threefold job {job}{where}' says how it stands, 'threefold cancel {job}{where}' stops it"
    pace = Pace()
    try:
        with board.open() as show:

            def beat(item: Values) -> None:
                counts, rows = inbox.counts(item), item.get("rows")
                show(item["state"], counts.rows, rows, words(item, counts, pace))

            return inbox.follow(job, timeout_seconds=timeout_seconds, beat=beat)
    except KeyboardInterrupt:
        console.print(f"stopped following; job {job} goes on: {look}")
        raise typer.Exit(INTERRUPTED) from None
    except OperatorError as error:
        raise OperatorError(f"{error}; {look}") from error
    except (BotoCoreError, ClientError) as error:
        raise OperatorError(f"job {job}: want AWS to say how it stands, got {error}; it goes on: {look}") from error


def words(job: Values, counts: Counts, pace: Pace) -> str:
    """How a job stands, in words.

    Args:
        job: its item.
        counts: of its rows.
        pace: of what was seen of it so far.
    """
    rows = job.get("rows")
    if rows is None:
        return "cutting the file into chunks" if job["state"] == JobState.PLANNED else ""
    said = [f"{min(counts.rows, rows):,} of {rows:,} rows"]
    found = pace.look(counts.rows, rows)
    if job["state"] != JobState.RUNNING:
        found = None
    if found:
        said.append(f"{found[0]:,.0f} rows/s")
    if counts.rejected:
        said.append(f"{counts.rejected:,} rejected")
    if found:
        said.append(_left(found[1]))
    return ", ".join(said)


def _left(seconds: float) -> str:
    return f"{timedelta(seconds=round(seconds))} left"
