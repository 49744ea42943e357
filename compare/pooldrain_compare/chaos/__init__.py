"""Chaos: services under load, faults of the database and signals at random instants, and what must hold all the same.

plan        draws a trial from a seed
rude        clients that misbehave
trial       runs it: a real process, a real PostgreSQL, real signals; brings back the evidence
invariants  what must hold, and who breaks them
campaign    many trials, and what came of them
"""
