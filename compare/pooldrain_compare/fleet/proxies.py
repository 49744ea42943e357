"""The proxies, as Debian packages them, with the recipes of `deploy/`, whose ports alone are replaced."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pooldrain.errors import StartupError

RECIPES = Path(__file__).parents[3] / "deploy"

# The ports in the recipes: of the proxy itself, and of the three instances.
FRONT, BACKS = 8080, (8001, 8002, 8003)


@dataclass(frozen=True, slots=True)
class Proxy:
    """One of them. `recipe`: the file in `deploy/`."""

    name: str
    recipe: str

    def argv(self, front: int, backs: Sequence[int], directory: Path) -> list[str]:
        """Write its configuration into `directory`; the command that runs it in the foreground. Raises StartupError."""
        program = _program(self.name)
        configuration = self.configuration(front, backs)
        path = directory / f"{self.name}-{front}.conf"
        if self.name == "nginx":
            configuration = _whole(configuration, directory / f"nginx-{front}")
        path.write_text(configuration, encoding="utf-8")
        if self.name == "nginx":
            return [program, "-c", str(path), "-e", "stderr", "-g", "daemon off;"]
        return [program, "-db", "-f", str(path)]

    def configuration(self, front: int, backs: Sequence[int]) -> str:
        """The recipe with these ports. Raises StartupError, if there is no recipe."""
        try:
            recipe = (RECIPES / self.recipe).read_text("utf-8")
        except OSError as error:
            raise StartupError(f"the recipes are in the project's own directory: {error}") from error
        for port, ours in zip((FRONT, *BACKS), (front, *backs), strict=True):
            assert recipe.count(f":{port}") == 1, f"{self.recipe} names port {port} once"
            recipe = recipe.replace(f":{port}", f":{ours}")
        return recipe


PROXIES = {proxy.name: proxy for proxy in (Proxy("haproxy", "haproxy.cfg"), Proxy("nginx", "nginx.conf"))}


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin{os.pathsep}/sbin")
    if found is None:
        raise StartupError(
            f"{name} is not installed; as root: apt-get install --no-install-recommends {name} (Debian, Ubuntu)"
        )
    return found


def _whole(site: str, directory: Path) -> str:
    """A configuration of nginx around a site, with its files in a directory that is made for it."""
    directory.mkdir()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"  {kind}_temp_path {directory}/{kind};\n" for kind in kinds)
    user = "user root;\n" if os.geteuid() == 0 else ""
    return (
        f"{user}worker_processes 1;\npid {directory}/pid;\nevents {{ worker_connections 512; }}\n"
        f"http {{\n  access_log off;\n{paths}{site}}}\n"
    )
