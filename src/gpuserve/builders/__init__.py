"""What a user subclasses; each builder becomes one description of a Modal function."""
