"""The GPUs that Modal rents: names, memory, list prices, and which of them holds a model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpuserve.exceptions import DeclarationError
from gpuserve.prices import PRICES_AS_OF, Prices, prices_or_listed

__all__ = ["CATALOGUE", "PRICES_AS_OF", "Gpu", "GpuType", "parse_gpu"]

_NAME = re.compile(r"(?P<name>[A-Za-z0-9-]+?)[!+]?(?::(?P<count>[0-9]+))?")
_LISTED = Prices.listed().gpus


@dataclass(frozen=True, slots=True)
class GpuType:
    """One kind of GPU.

    Attributes:
        memory_gib: Memory of one GPU.
        usd_per_hour: List price of one GPU, without CPU and memory, in the cheapest region, preemptible.
        max_count: GPUs that one container may have.
    """

    name: str
    memory_gib: int
    usd_per_hour: float
    max_count: int = 8


# Source: Modal's guide to GPU acceleration (names, memory, counts).
CATALOGUE: dict[str, GpuType] = {
    name: GpuType(name, memory_gib, _LISTED[name], max_count)
    for name, memory_gib, max_count in (
        ("T4", 16, 8),
        ("L4", 24, 8),
        ("A10", 24, 4),
        ("L40S", 48, 8),
        ("A100-40GB", 40, 8),
        ("A100-80GB", 80, 8),
        ("RTX-PRO-6000", 96, 8),
        ("H100", 80, 8),
        ("H200", 141, 8),
        ("B200", 180, 8),
    )
}
# Names that Modal takes for another: what somebody writes from an older guide still means one thing.
_ALIASES = {"A10G": "A10", "A100": "A100-40GB"}

_BYTES = {"fp32": 4.0, "float32": 4.0, "fp16": 2.0, "float16": 2.0, "bf16": 2.0, "bfloat16": 2.0, "int8": 1.0,
          "fp8": 1.0, "int4": 0.5, "nf4": 0.5}  # fmt: skip
_GIB = 1 << 30
# What the CUDA context, the kernels' workspaces and the activations of one batch take beside weights and cache.
# Source: our choice; vLLM's own default leaves a tenth of the memory free for the same.
_OVERHEAD = 0.10
_CONTEXT_GIB = 1.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """A kind of GPU and a number of them, as ``gpu="H100:2"`` names it.

    Examples:
        >>> Gpu.parse("A100-80GB:2").memory_gib
        160
        >>> str(Gpu.fits(parameters=7e9, dtype="bf16", context=4096))
        'L4'
    """

    kind: GpuType
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Gpu:
        """The GPU that *text* names.

        Raises:
            ValueError: With the known names, if it names none.
        """
        return cls(*parse_gpu(text))

    @classmethod
    def fits(
        cls,
        *,
        parameters: float,
        dtype: str = "bf16",
        context: int = 0,
        concurrent: int = 1,
        kv_bytes_per_token: float | None = None,
        prices: Prices | None = None,
    ) -> Gpu:
        """The cheapest GPU, or number of one kind, whose memory holds a model and its cache.

        Args:
            parameters: How many the model has, e.g. ``7e9``.
            dtype: What they are held in: fp32, fp16, bf16, int8, fp8, int4 or nf4.
            context: Tokens that a sequence may have, for the key-value cache; 0 for a model without one.
            concurrent: Sequences that are in the cache at once.
            kv_bytes_per_token: Bytes that a token takes in the cache, where known: ``2 * layers * kv_heads *
                head_dim * bytes``. By default estimated from *parameters*, without grouped heads.
            prices: What is cheap, e.g. ``gpuserve.live_prices()``; the list unless given.

        Raises:
            DeclarationError: If an argument is out of range, or nothing that Modal rents holds it.
            PricesError: If *prices* are none.

        Source:
            A decoder of N parameters has about 12·L·h² of them and layers of h/128: Llama-2-7B, for one, has
            h = 4096, L = 32. A cached token is 2·L·h values.
        """
        prices = prices_or_listed(prices)
        faults = []
        if not _is_number(parameters) or parameters == 0:
            faults.append(f"parameters got {parameters!r}; write a number such as 7e9")
        if not isinstance(dtype, str) or dtype not in _BYTES:
            faults.append(f"dtype got {dtype!r}; write one of {', '.join(_BYTES)}")
        if not (_is_number(context) and _is_number(concurrent)) or concurrent < 1:
            faults.append(f"context got {context!r} and concurrent {concurrent!r}; write 0 or more, and 1 or more")
        if kv_bytes_per_token is not None and not _is_number(kv_bytes_per_token):
            told = "write a number such as 131072, or leave it out"
            faults.append(f"kv_bytes_per_token got {kv_bytes_per_token!r}; {told}")
        if faults:
            raise DeclarationError("Gpu.fits", tuple(faults))
        if kv_bytes_per_token is None:
            width = (parameters * 128 / 12) ** (1 / 3)
            kv_bytes_per_token = 2 * (width / 128) * width * 2
        needed_gib = (parameters * _BYTES[dtype] + context * concurrent * kv_bytes_per_token) / _GIB
        candidates = [
            cls(kind, count)
            for kind in CATALOGUE.values()
            for count in (1, 2, 4, 8)
            if count <= kind.max_count and cls(kind, count).usable_gib >= needed_gib
        ]
        if not candidates:
            largest = max(cls(kind, kind.max_count).usable_gib for kind in CATALOGUE.values())
            what = f"{needed_gib:,.0f} GiB are needed, and a container has {largest:,.0f} GiB at most"
            raise DeclarationError("Gpu.fits", (f"{what}; hold the weights in fewer bits, or shorten context",))
        return min(candidates, key=lambda one: (one.usd_per_hour_at(prices), one.count))

    @property
    def memory_gib(self) -> int:
        """Memory of all of them."""
        return self.kind.memory_gib * self.count

    @property
    def usable_gib(self) -> float:
        """Memory for weights and cache: all but the runtime's own share."""
        return self.memory_gib * (1 - _OVERHEAD) - _CONTEXT_GIB * self.count

    @property
    def usd_per_hour(self) -> float:
        """List price of all of them, as of `PRICES_AS_OF`."""
        return self.kind.usd_per_hour * self.count

    def usd_per_hour_at(self, prices: Prices) -> float:
        """Price of all of them, by *prices*.

        Examples:
            >>> Gpu.parse("H100:2").usd_per_hour_at(Prices.listed())
            7.8984
        """
        return prices.gpus[self.kind.name] * self.count

    def __str__(self) -> str:
        """As Modal's ``gpu=`` takes it."""
        return self.kind.name if self.count == 1 else f"{self.kind.name}:{self.count}"


def parse_gpu(text: str) -> tuple[GpuType, int]:
    """The kind and the count that ``"A100-80GB:2"`` means.

    Raises:
        ValueError: With the known names, if it means none.

    Examples:
        >>> kind, count = parse_gpu("A100-80GB:2")
        >>> (kind.memory_gib, count)
        (80, 2)
    """
    known = ", ".join(CATALOGUE)
    found = _NAME.fullmatch(text.strip())
    kind = None
    if found is not None:
        name = found["name"].upper()
        kind = CATALOGUE.get(_ALIASES.get(name, name))
    if found is None or kind is None:
        raise ValueError(f"gpu={text!r} is not a GPU that Modal has; write one of {known}, with a count as in 'H100:2'")
    count = int(found["count"] or 1)
    if not 1 <= count <= kind.max_count:
        raise ValueError(f"gpu={text!r} asks for {count}; a container has 1 to {kind.max_count} {kind.name}")
    return kind, count


def _is_number(value: object) -> bool:
    """A count or an amount that something can be reckoned with: neither negative nor far beyond what is."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e14  # noqa: PLR2004
