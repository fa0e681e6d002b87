"""The quickstart's embedding, end to end, beside bare `encode` of the same texts."""
