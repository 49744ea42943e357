"""One colour a system, everywhere: cool ones for threads, warm ones for asyncio, a plain server a pale pooldrain.

Every colour is drawn on the surface of its theme; a test holds the contrast.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Colour:
    """The same colour in both themes."""

    light: str
    dark: str


SURFACE = Colour("#ffffff", "#15181e")
INK = Colour("#1b1f26", "#e8ebf0")
MUTED = Colour("#59616e", "#a0a8b5")
GRID = Colour("#e3e6eb", "#2b313b")

OTHER = Colour("#6b7280", "#9aa3b2")
SYSTEMS = {
    "pooldrain-gunicorn": Colour("#1d5fd1", "#6ea8ff"),
    "plain-gunicorn": Colour("#5f90e0", "#4677c4"),
    "pooldrain-waitress": Colour("#00766a", "#34cdb4"),
    "plain-waitress": Colour("#369c90", "#228a7d"),
    "granian-wsgi": Colour("#5b6b1f", "#afc24e"),
    "cheroot": Colour("#4d7c0f", "#84cc16"),
    "poll-flag": Colour("#5f6773", "#9aa3b2"),
    "pooldrain-uvicorn": Colour("#c2410c", "#ff9153"),
    "plain-uvicorn": Colour("#de7240", "#bd6533"),
    "gunicorn-uvicorn-worker": Colour("#8a6100", "#e0b040"),
    "granian-asgi": Colour("#a21caf", "#e879f9"),
    "hypercorn": Colour("#9f1239", "#fb7185"),
    "pooldrain-threads": Colour("#4338ca", "#a5a0ff"),
    "sqlalchemy-threads": Colour("#8079e0", "#7a73d4"),
    "psycopg-pool": Colour("#0e7490", "#22b8d6"),
    "pooldrain-asyncio": Colour("#b91c1c", "#ff8a80"),
    "sqlalchemy-asyncio": Colour("#dd6b66", "#c9544e"),
    "psycopg-pool-async": Colour("#be185d", "#f472b6"),
    "asyncpg-pool": Colour("#7a5c00", "#d9b44a"),
}


def system_colours(systems: Collection[str]) -> tuple[str, str]:
    """CSS that gives each system its colour: in the light theme, and in the dark one."""
    light = "".join(f".s-{name}{{color:{_colour(name).light}}}" for name in systems)
    dark = "".join(f".s-{name}{{color:{_colour(name).dark}}}" for name in systems)
    return light, dark


def chart_colours() -> tuple[str, str]:
    """CSS for the rest of a chart, in both themes."""

    def rules(theme: str) -> str:
        ink, muted, grid, surface = (getattr(each, theme) for each in (INK, MUTED, GRID, SURFACE))
        return (
            f".ink{{fill:{ink}}}.muted{{fill:{muted}}}.grid{{stroke:{grid}}}"
            f".surface,.hollow{{fill:{surface}}}.frame{{stroke:{grid}}}"
        )

    return rules("light"), rules("dark")


def _colour(name: str) -> Colour:
    return SYSTEMS.get(name, OTHER)


LINK = Colour("#1d5fd1", "#8ab8ff")
PAGE = Colour("#f6f7f9", "#0e1014")
GOOD = Colour("#13713a", "#4cc77f")
BAD = Colour("#b42318", "#ff8a80")
WARNING = Colour("#fff4d6", "#3a2f12")
WARNING_EDGE = Colour("#b7791f", "#d9a441")


def page_style() -> str:
    """CSS of the page's colours, and of every system's, in both themes."""
    names = {
        "page": PAGE,
        "surface": SURFACE,
        "ink": INK,
        "muted": MUTED,
        "rule": GRID,
        "link": LINK,
        "good": GOOD,
        "bad": BAD,
        "warn": WARNING,
        "warn-edge": WARNING_EDGE,
    }
    (light, dark), (more_light, more_dark) = chart_colours(), system_colours(SYSTEMS)
    light_names = ";".join(f"--{name}:{colour.light}" for name, colour in names.items())
    dark_names = ";".join(f"--{name}:{colour.dark}" for name, colour in names.items())
    return (
        f":root{{{light_names}}}{light}{more_light}\n"
        f"@media(prefers-color-scheme:dark){{:root{{{dark_names}}}{dark}{more_dark}}}"
    )
