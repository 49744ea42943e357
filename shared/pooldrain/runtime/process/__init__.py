"""The process: its signals, its forks, its end, and what ends it if nothing else does."""
