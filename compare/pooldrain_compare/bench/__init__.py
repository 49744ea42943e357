"""Benchmarks: each answers one question, runs alone, prints a table and writes what it measured as JSON."""
