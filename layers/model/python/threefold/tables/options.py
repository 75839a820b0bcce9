"""What an uploader may say of a file: its delimiter, the version that scores it, where outcomes go, and more."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, fields
from email.errors import HeaderParseError
from email.header import Header, decode_header, make_header
from typing import TYPE_CHECKING, Any, Final

from threefold import strict_json
from threefold.errors import InvalidTable, Malformed, shown
from threefold.tables.header import DELIMITERS

if TYPE_CHECKING:
    from collections.abc import Mapping

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html: metadata is at most 2 KB.
MAXIMUM_BYTES: Final = 64 * 1024
MAXIMUM_NOTE: Final = 1_000
_WINDOWS: Final = ("table", "file")
_BOOLEANS: Final = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Options:
    """How one upload is to be read and scored.

    Attributes:
        delimiter: one of DELIMITERS; None finds it from the header.
        version: a label or digest that the release names, which alone scores the file; None follows the release.
        store: whether outcomes go to the predictions table, and not to the result file alone.
        note: shown with the job.
        pending: the collection of pending records that the file is.
        windows: `table`, where the rows are a part of the stream, or `file`, where they are all there is of it.
    """

    delimiter: str | None = None
    version: str | None = None
    store: bool = True
    note: str | None = None
    pending: str | None = None
    windows: str = "table"

    @classmethod
    def read(cls, metadata: Mapping[str, str], beside: bytes | None) -> Options:
        """Put together what an object's metadata say and, where they say nothing, the JSON object beside it.

        Metadata of other programs (rclone's times, say) are none of ours.

        Args:
            metadata: the object's, without `x-amz-meta-`.
            beside: the content of `<name>.job.json`, if there is one.

        Raises:
            InvalidTable: an option is unknown, or has a wrong value.
        """
        known = [field.name for field in fields(cls)]
        found: dict[str, Any] = _parse(beside) if beside is not None else {}
        for name in found:
            if name not in known or name == "pending":
                raise _unknown(name, known)
        for name, text in metadata.items():
            if name in known:
                found[name] = _decode(text)
            elif difflib.get_close_matches(name, known, n=1, cutoff=0.8):
                raise _unknown(name, known)
        return cls(**{name: _check(name, value) for name, value in found.items()})

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults, as the job keeps it."""
        return {name: value for name, value in asdict(self).items() if value != getattr(_DEFAULTS, name)}


_DEFAULTS: Final = Options()


def _parse(beside: bytes) -> dict[str, Any]:
    if len(beside) > MAXIMUM_BYTES:
        message = f"options: want at most {MAXIMUM_BYTES} bytes of JSON, got more"
        raise InvalidTable(message)
    try:
        document = strict_json.loads(beside)
    except Malformed as error:
        message = f"options: {error}"
        raise InvalidTable(message) from error
    if not isinstance(document, dict):
        message = f"options: want a JSON object, got {shown(document)}"
        raise InvalidTable(message)
    return {name: value for name, value in document.items() if value is not None}


def encode(value: str | bool) -> str:
    """An option as an object's metadata carry it, which are headers of HTTP: ASCII, and no tab at their ends."""
    if isinstance(value, bool):
        return str(value).lower()
    if value == "\t":
        return "tab"
    return value if value.isascii() else Header(value, "utf-8").encode(linesep="", maxlinelen=0)


def _decode(text: str) -> str:
    """Metadata as they were meant: S3 gives back what is not ASCII in the words of RFC 2047."""
    try:
        return str(make_header(decode_header(text)))
    except (HeaderParseError, LookupError, UnicodeError):
        return text


def _check(name: str, value: object) -> Any:  # noqa: ANN401 - what the option takes
    if name == "store":
        found = value if isinstance(value, bool) else _BOOLEANS.get(str(value).strip().lower())
        if found is None:
            message = f"option 'store': want true or false, got {shown(value)}"
            raise InvalidTable(message)
        return found
    if not isinstance(value, str):
        message = f"option '{name}': want text, got {shown(value)}"
        raise InvalidTable(message)
    if name == "delimiter":
        # A header of HTTP keeps no tab at its ends.
        delimiter = {"tab": "\t", "\\t": "\t"}.get(value.lower(), value)
        if len(delimiter) != 1 or delimiter not in DELIMITERS:
            message = f"option 'delimiter': want one of , ; | or tab, got {shown(value)}"
            raise InvalidTable(message)
        return delimiter
    if name == "windows" and value not in _WINDOWS:
        message = f"option 'windows': want table or file, got {shown(value)}"
        raise InvalidTable(message)
    if name == "note" and len(value) > MAXIMUM_NOTE:
        message = f"option 'note': want at most {MAXIMUM_NOTE} characters, got {len(value)}"
        raise InvalidTable(message)
    return value or None


def _unknown(name: str, known: list[str]) -> InvalidTable:
    wanted = [each for each in known if each != "pending"]
    return InvalidTable(f"options: want some of {wanted}, got {shown(name)}")
