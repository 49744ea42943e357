"""The reports: what the benchmarks measured, as a page and a README that answer what users ask before they choose.

Nothing is measured here and no number is typed: `evidence` reads the files of results, `answers` and `targets` put
them into sentences, `charts` draws them, `writing` renders all of it. The same data give the same bytes.
"""
