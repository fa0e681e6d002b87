"""The command line; nothing else in gpuserve imports it."""
