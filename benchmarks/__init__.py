"""Measurements, ours and the peer's in one run: `python -m benchmarks NAME`."""
