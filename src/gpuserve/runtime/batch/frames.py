"""Records in an append-only file: each framed, so that a torn or foreign piece is skipped and costs only itself.

``GSL1`` · length (4 bytes, little-endian) · CRC-32 of the payload (4 bytes) · payload. A writer that ran out of room
leaves half a frame; the next one appends after it, and readers look for the next ``GSL1``.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

__all__ = ["frame", "frames_in", "json_frame", "json_frames_in"]

_MAGIC = b"GSL1"
_HEAD = struct.Struct("<4sII")


def frame(payload: bytes) -> bytes:
    """The bytes that stand for *payload* in the file."""
    return _HEAD.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload


def json_frame(record: dict[str, Any]) -> bytes:
    """The bytes that stand for a record of JSON in the file."""
    return frame(json.dumps(record, separators=(",", ":"), sort_keys=True).encode())


def frames_in(data: bytes | memoryview) -> Iterator[tuple[int, bytes]]:
    """Every whole record, with the position after it; what is damaged or unfinished is passed over.

    Examples:
        >>> torn = frame(b"one") + frame(b"lost")[:-2] + frame(b"two")
        >>> [payload for _, payload in frames_in(torn)]
        [b'one', b'two']
    """
    view = bytes(data)
    position = 0
    while (position := view.find(_MAGIC, position)) >= 0 and position + _HEAD.size <= len(view):
        _, length, check = _HEAD.unpack_from(view, position)
        begin = position + _HEAD.size
        payload = view[begin : begin + length]
        if len(payload) < length or zlib.crc32(payload) != check:
            position += 1
            continue
        position = begin + length
        yield position, payload


def json_frames_in(data: bytes | memoryview) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same, of records of JSON."""
    for position, payload in frames_in(data):
        yield position, json.loads(payload)
