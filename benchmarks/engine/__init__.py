"""The local engine beside a null servicer, which only answers the same client and runtime."""
