"""Differential fuzzing: one scenario, both shells in this process, and nothing left to chance.

The real runners, pools and middlewares run; what is faked is what would make a run slow or unrepeatable: the clock
(`turns`, `loop`), the turns that threads take, the drivers (`database`) and the servers. A scenario is a script of
events in an order of its own (`scenario`), so that no machine is too slow for it. `trial` runs and compares,
`strategies` draws, `campaign` does so many times and keeps what diverged.
"""
