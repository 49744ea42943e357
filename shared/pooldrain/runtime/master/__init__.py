"""Several workers: the master that starts, replaces and stops them, and the worker under it."""
