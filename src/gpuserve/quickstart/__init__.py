"""The main job: Python's own documentation, embedded and searched."""
