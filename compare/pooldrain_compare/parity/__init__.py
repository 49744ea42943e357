"""`pooldrain-compare parity`: every scenario on every server, and what is not the same on all of them."""
