"""What a server tells of itself: a line a request and an event, traces, alerts; never a secret."""
