"""Tables and transitions: no process, no socket of its own."""
