"""Model weights: verifying, loading and fetching them, beside the bare hash and the hub's own client."""
