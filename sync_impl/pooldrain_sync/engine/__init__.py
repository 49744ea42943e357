"""The threaded engine: every thread waits on one poller, and who wakes serves."""
