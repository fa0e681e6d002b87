"""What may go wrong on the way between two programs: Toxiproxy's eight toxics, without clock or socket.

A toxic makes one `Link` a connection. A link is told what comes and when, and says what is to go on and when; so every
schedule can be tested without waiting, and `gpuserve.testing.FaultProxy` does the waiting.

Source:
    Names and meanings: Toxiproxy 2 (github.com/Shopify/toxiproxy, "Toxics"). There, ``down`` is a proxy that is
    switched off.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import ClassVar, Literal, TypeAlias

from typing_extensions import override

from gpuserve.exceptions import DeclarationError

__all__ = [
    "Bandwidth",
    "Direction",
    "Down",
    "Ending",
    "Latency",
    "LimitData",
    "Link",
    "ResetPeer",
    "Slicer",
    "SlowClose",
    "Timed",
    "Timeout",
    "Toxic",
    "through",
]

Direction = Literal["downstream", "upstream"]
# A narrow connection is as slow between two bytes as between two pieces: so long at most, in seconds.
_SLICE_S = 0.05


class Ending(Enum):
    """How a connection ends."""

    END = "no more comes this way"
    CLOSE = "closed both ways"
    RESET = "reset"


Timed: TypeAlias = tuple[float, bytes | Ending]
"""What goes on, and when, in seconds on the connection's clock."""


class Link:
    """One direction of one connection, through one toxic; this one does nothing."""

    def begin(self, _now: float) -> Iterator[Timed]:
        """What happens though nothing comes."""
        yield from ()

    def feed(self, now: float, data: bytes) -> Iterator[Timed]:
        """What becomes of *data*, which comes *now*."""
        yield now, data

    def end(self, now: float) -> Iterator[Timed]:
        """What becomes of the sender's end."""
        yield now, Ending.END


@dataclass(frozen=True, kw_only=True)
class Toxic:
    """One fault; the base of all eight.

    Attributes:
        direction: ``"downstream"``, what the server answers, or ``"upstream"``, what the client sends.
        toxicity: The share of connections that it befalls, 0 to 1.

    Raises:
        DeclarationError: If a number is out of its range; every fault at once.
    """

    direction: Direction = "downstream"
    toxicity: float = 1.0
    _at_least: ClassVar[dict[str, float]] = {}

    def __post_init__(self) -> None:
        faults = []
        if self.direction not in {"downstream", "upstream"}:
            faults.append(f"direction is {self.direction!r}; write 'downstream' or 'upstream'")
        if not 0 <= self.toxicity <= 1:
            faults.append(f"toxicity is {self.toxicity!r}, a share of the connections: 0 to 1")
        for name in (one.name for one in fields(self) if one.name not in {"direction", "toxicity"}):
            value, least = getattr(self, name), self._at_least.get(name, 0)
            if not isinstance(value, int | float) or not math.isfinite(value) or value < least:
                faults.append(f"{name} is {value!r}; write a number that is at least {least:g}")
        if faults:
            raise DeclarationError(type(self).__name__, tuple(faults))

    def link(self, _dice: random.Random) -> Link:
        """What it does to one direction of one connection."""
        return Link()


@dataclass(frozen=True)
class Latency(Toxic):
    """Everything comes later, in its order.

    Attributes:
        latency_ms: By so much.
        jitter_ms: And by as much more or less, by chance.
    """

    latency_ms: float
    jitter_ms: float = 0.0

    @override
    def link(self, dice: random.Random) -> Link:
        return _Late(self, dice)


class _Late(Link):
    def __init__(self, toxic: Latency, dice: random.Random) -> None:
        self._toxic, self._dice, self._last = toxic, dice, -math.inf

    def _due(self, now: float) -> float:
        jitter = self._dice.uniform(-self._toxic.jitter_ms, self._toxic.jitter_ms)
        self._last = max(self._last, now + max(0.0, self._toxic.latency_ms + jitter) / 1000)
        return self._last

    @override
    def feed(self, now: float, data: bytes) -> Iterator[Timed]:
        yield self._due(now), data

    @override
    def end(self, now: float) -> Iterator[Timed]:
        yield self._due(now), Ending.END


@dataclass(frozen=True)
class Bandwidth(Toxic):
    """A narrow connection.

    Attributes:
        kib_per_s: What gets through, KiB a second; above 0.
    """

    kib_per_s: float
    _at_least: ClassVar[dict[str, float]] = {"kib_per_s": 0.001}

    @override
    def link(self, dice: random.Random) -> Link:
        return _Narrow(self.kib_per_s * 1024)


class _Narrow(Link):
    def __init__(self, rate: float) -> None:
        self._rate, self._free_at = rate, -math.inf
        self._slice = max(1, int(rate * _SLICE_S))

    @override
    def feed(self, now: float, data: bytes) -> Iterator[Timed]:
        for begin in range(0, len(data), self._slice):
            piece = data[begin : begin + self._slice]
            self._free_at = max(self._free_at, now) + len(piece) / self._rate
            yield self._free_at, piece

    @override
    def end(self, now: float) -> Iterator[Timed]:
        yield max(self._free_at, now), Ending.END


@dataclass(frozen=True)
class SlowClose(Toxic):
    """Whoever has nothing more to say is heard to end later.

    Attributes:
        delay_ms: By so much.
    """

    delay_ms: float

    @override
    def link(self, dice: random.Random) -> Link:
        return _EndsLate(self.delay_ms / 1000)


class _EndsLate(Link):
    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s

    @override
    def end(self, now: float) -> Iterator[Timed]:
        yield now + self._delay_s, Ending.END


@dataclass(frozen=True)
class Timeout(Toxic):
    """Nothing gets through, not even an end; then the connection is closed.

    Attributes:
        timeout_ms: After so long; 0: never, while the proxy runs.
    """

    timeout_ms: float

    @override
    def link(self, dice: random.Random) -> Link:
        return _Silent(self.timeout_ms / 1000)


class _Silent(Link):
    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    @override
    def begin(self, now: float) -> Iterator[Timed]:
        if self._timeout_s:
            yield now + self._timeout_s, Ending.CLOSE

    @override
    def feed(self, now: float, data: bytes) -> Iterator[Timed]:
        yield from ()

    @override
    def end(self, now: float) -> Iterator[Timed]:
        yield from ()


@dataclass(frozen=True)
class ResetPeer(Toxic):
    """Both ends are told that the connection was reset; what comes before that gets through.

    Attributes:
        timeout_ms: After so long; 0: at once.
    """

    timeout_ms: float = 0.0

    @override
    def link(self, dice: random.Random) -> Link:
        return _Reset(self.timeout_ms / 1000)


class _Reset(Link):
    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    @override
    def begin(self, now: float) -> Iterator[Timed]:
        yield now + self._timeout_s, Ending.RESET


@dataclass(frozen=True)
class Slicer(Toxic):
    """What was sent in one piece comes in several.

    Attributes:
        average_size: Of so many bytes each, on average; at least 1.
        size_variation: And as many more or less, by chance.
        delay_us: Microseconds between two.
    """

    average_size: int
    size_variation: int = 0
    delay_us: float = 0.0
    _at_least: ClassVar[dict[str, float]] = {"average_size": 1}

    @override
    def link(self, dice: random.Random) -> Link:
        return _Sliced(self, dice)


class _Sliced(Link):
    def __init__(self, toxic: Slicer, dice: random.Random) -> None:
        self._toxic, self._dice, self._at = toxic, dice, -math.inf

    @override
    def feed(self, now: float, data: bytes) -> Iterator[Timed]:
        toxic, begin = self._toxic, 0
        self._at = max(self._at, now)
        while begin < len(data):
            size = max(1, toxic.average_size + self._dice.randint(-toxic.size_variation, toxic.size_variation))
            yield self._at, data[begin : begin + size]
            begin += size
            self._at += toxic.delay_us / 1e6

    @override
    def end(self, now: float) -> Iterator[Timed]:
        yield max(self._at, now), Ending.END


@dataclass(frozen=True)
class LimitData(Toxic):
    """The connection is closed once so much has got through.

    Attributes:
        bytes: How much; 0: nothing gets through.
    """

    bytes: int

    @override
    def link(self, dice: random.Random) -> Link:
        return _Limited(self.bytes)


class _Limited(Link):
    def __init__(self, most: int) -> None:
        self._left = most

    @override
    def feed(self, now: float, data: bytes) -> Iterator[Timed]:
        passed, self._left = data[: self._left], max(0, self._left - len(data))
        if passed:
            yield now, passed
        if not self._left:
            yield now, Ending.CLOSE


@dataclass(frozen=True)
class Down(Toxic):
    """Nobody listens: connections are refused, and those that are open are reset. Its direction is of no account."""


def through(links: Sequence[Link], found: Iterator[Timed]) -> Iterator[Timed]:
    """What is left of *found* when it has gone through *links*, the first one first."""
    for link in links:
        found = _through(link, found)
    return found


def _through(link: Link, found: Iterator[Timed]) -> Iterator[Timed]:
    for due, what in found:
        if isinstance(what, bytes):
            yield from link.feed(due, what)
        elif what is Ending.END:
            yield from link.end(due)
        else:
            yield due, what
