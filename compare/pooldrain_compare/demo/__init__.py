"""`pooldrain-compare demo`: each server under load, a SIGTERM in the middle of it, and what became of everything."""
