"""RPC handlers, one file an object; each method that has an RPC's name answers it."""
