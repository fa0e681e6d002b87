"""The header of a safetensors file, checked before anything is loaded by it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuserve.exceptions import UnsafeWeightsError, WeightsCorruptError
from gpuserve.runtime.weights.manifest import strict_json

__all__ = ["Span", "read_header"]

# Source: safetensors 0.8.0, the format's own limit on a header.
_LONGEST_HEADER = 100_000_000
# Source: safetensors 0.8.0, `Dtype`; the bits of one element.
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64,
}  # fmt: skip
_MOST_DIMENSIONS = 64
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True, slots=True)
class Span:
    """Where a tensor lies.

    Attributes:
        begin: Its first byte, counted from the first tensor.
        end: The byte after its last.
        dtype: Its numbers' type, as safetensors names it.
        shape: Its shape.
    """

    begin: int
    end: int
    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path, name: str) -> tuple[int, dict[str, Span]]:
    """The byte at which tensors begin, and where each lies; a header that does not tell of every byte is refused.

    Raises:
        UnsafeWeightsError: If it is a pickle under a safe name.
        WeightsCorruptError: With what was expected, and what is there.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > _LONGEST_HEADER or 8 + length > size:  # noqa: PLR2004 (the length's own 8 bytes)
            # only here: the length of a header of 640 bytes begins as a pickle does
            if start.startswith(_PICKLES):
                raise UnsafeWeightsError(
                    (name,),
                    "a pickle under a safetensors name",
                    "Nothing allows it under that name, which every loader would trust: take another revision or "
                    "repository, whose safetensors files are what they are called",
                )
            raise WeightsCorruptError(
                name, f"its header would be {length:,} bytes long, in a file of {size:,}; is the file cut off?"
            )
        header = strict_json(file.read(length), name)
    if not isinstance(header, dict):
        raise WeightsCorruptError(name, "its header is not a JSON object")
    spans = {key: _span(key, entry, name) for key, entry in header.items() if key != "__metadata__"}
    texts = header.get("__metadata__", {})
    if not isinstance(texts, dict) or any(not isinstance(text, str) for text in texts.values()):
        raise WeightsCorruptError(name, "__metadata__ is not a map of texts")
    expected = 0
    for begin, end in sorted((one.begin, one.end) for one in spans.values()):
        if begin != expected:
            raise WeightsCorruptError(name, f"a tensor begins at byte {begin:,}, expected at {expected:,}")
        expected = end
    if 8 + length + expected != size:
        raise WeightsCorruptError(name, f"its tensors end at byte {8 + length + expected:,}, the file at {size:,}")
    return 8 + length, spans


def _span(key: str, entry: Any, name: str) -> Span:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise WeightsCorruptError(name, f"the tensor {key[:80]!r} is not told by dtype, shape and data_offsets")
    bits, shape, offsets = _BITS.get(str(entry["dtype"])), entry["shape"], entry["data_offsets"]
    if bits is None:
        raise WeightsCorruptError(name, f"the tensor {key[:80]!r} has the unknown type {str(entry['dtype'])[:40]!r}")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:  # noqa: PLR2004
        raise WeightsCorruptError(name, f"the tensor {key[:80]!r} has a shape or offsets that cannot be")
    got, needed = 8 * (offsets[1] - offsets[0]), bits * math.prod(shape)
    if got != needed:
        raise WeightsCorruptError(name, f"the tensor {key[:80]!r} needs {needed:,} bits and is given {got:,}")
    return Span(offsets[0], offsets[1], str(entry["dtype"]), tuple(shape))


def _counts(values: Any) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= _MOST_DIMENSIONS
        and all(type(one) is int and 0 <= one < 1 << 63 for one in values)
    )
