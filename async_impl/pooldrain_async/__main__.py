"""`python -m pooldrain_async`."""

from pooldrain_async.cli import main

main()
