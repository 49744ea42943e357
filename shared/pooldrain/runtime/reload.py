"""`--reload`, for development: the service in a process of its own, which drains and is started anew on a change."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pooldrain.exit_codes import ExitCode, by_signal
from pooldrain.runtime.output.logging import configure_logging

if TYPE_CHECKING:
    from pooldrain.runtime.options.settings import Settings
    from pooldrain.runtime.process.signals import SignalWatch
    from pooldrain.servers import Backend

logger = logging.getLogger("pooldrain")

# Milliseconds between two looks whether to go on watching.
LOOK = 100


def serve_and_reload(backend: Backend, arguments: Sequence[str], settings: Settings, watch: SignalWatch) -> int:
    """Serve until a signal; drain and start anew when a Python file under the directory changes. The last exit code.

    A service that ends by itself, for an error in what was just written say, is started anew at the next change.
    """
    from watchfiles import PythonFilter
    from watchfiles import watch as changes

    configure_logging(settings.log_format, settings.log_level, settings.log_config)
    directory = settings.app_dir or Path.cwd()
    command = [sys.executable, "-m", f"pooldrain_{backend}", *arguments, "--no-reload", "--chdir", str(Path.cwd())]
    ended = threading.Event()
    watch.listen(ended.set)
    service: subprocess.Popen[bytes] | None = None
    logger.info("reload: watching %s", directory)
    watching = changes(
        directory,
        watch_filter=PythonFilter(),
        stop_event=ended,
        raise_interrupt=False,
        rust_timeout=LOOK,
        yield_on_timeout=True,  # the first time: what changes from now on is seen, and the service may begin
    )
    try:
        for changed in watching:
            if ended.is_set():
                break
            if changed:
                logger.info("reload: a file has changed")
                end_service(service)
            if changed or service is None:
                service = subprocess.Popen(command, start_new_session=True)  # a Ctrl+C reaches it by us, and once
    finally:
        code = end_service(service)
    return code


def end_service(service: subprocess.Popen[bytes] | None) -> int:
    """Have it drain, and wait for it, which its own deadlines bound; its exit code."""
    if service is None:
        return int(ExitCode.DRAINED)
    if service.poll() is None:
        service.send_signal(signal.SIGTERM)
    code = service.wait()
    if code == -signal.SIGTERM:  # it was still starting, and so served nobody
        return int(ExitCode.DRAINED)
    return code if code >= 0 else by_signal(-code)
