"""`python -m pooldrain_compare.chaos`, the same as `pooldrain-compare chaos`."""

from __future__ import annotations

import sys

from pooldrain_compare.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "chaos")
    main()
