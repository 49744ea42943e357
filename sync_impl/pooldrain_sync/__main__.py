"""`python -m pooldrain_sync`."""

from pooldrain_sync.cli import main

main()
