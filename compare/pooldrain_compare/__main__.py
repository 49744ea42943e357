"""`python -m pooldrain_compare`, and the `pooldrain-compare` command."""

from __future__ import annotations

from typing import NoReturn

from pooldrain.runtime.process.missing import told_if_missing


def main() -> NoReturn:
    """Run the command, if everything that it is made of is there."""
    with told_if_missing("pooldrain-compare", "compare"):
        from pooldrain_compare import cli
    cli.main()


if __name__ == "__main__":
    main()
