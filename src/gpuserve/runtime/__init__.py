"""What runs inside a container."""
