"""Reads gzip as a stream, in bounded memory."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from threefold.errors import InvalidTable

if TYPE_CHECKING:
    from collections.abc import Iterator

# RFC 1952: the first two bytes of a member.
MAGIC: Final = b"\x1f\x8b"
_PIECE_BYTES: Final = 1024**2
_GZIP: Final = 16 + zlib.MAX_WBITS


def gunzip(stream: Iterator[bytes]) -> Iterator[bytes]:
    """The plain bytes of a gzip stream of any number of members, in pieces of at most 1 MiB.

    Raises:
        InvalidTable: it is damaged, or it ends too early.
    """
    member = zlib.decompressobj(_GZIP)
    try:
        for piece in stream:
            rest = piece
            while rest:
                if member.eof:
                    # Zeros after the last member are padding, as gzip itself has it.
                    rest = rest.lstrip(b"\0")
                    if not rest:
                        break
                    member = zlib.decompressobj(_GZIP)
                if plain := member.decompress(rest, _PIECE_BYTES):
                    yield plain
                rest = member.unused_data if member.eof else member.unconsumed_tail
    except zlib.error as error:
        message = f"file: want gzip, got damaged data: {error}"
        raise InvalidTable(message) from error
    if not member.eof:
        message = "file: want a whole gzip file, got one that ends too early"
        raise InvalidTable(message)
