"""A server with more callers than places: how soon it refuses, and what that costs those whom it serves."""
