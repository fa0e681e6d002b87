"""Schedules on the engine: how late their inputs are queued."""
