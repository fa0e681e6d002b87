"""Model weights that are fetched once, verified always, and published whole or not at all."""
