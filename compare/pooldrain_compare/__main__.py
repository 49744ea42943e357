"""`python -m pooldrain_compare`."""

from pooldrain_compare.cli import main

main()
