"""The HTTP face, as it is over the wire."""
