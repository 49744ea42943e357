"""Rolling restarts: three instances behind a proxy, under load, each restarted in turn; ours and the stock servers."""
