"""Jobs at their times: what is due, who runs it, and what became of it."""
