"""Serving: our own HTTP face beside what one would take instead, under the load of wrk."""
