"""Processes, namespaces, sockets and the clock."""
