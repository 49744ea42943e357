"""Flask for WSGI servers without a hook of their own: the engine is disposed of at exit."""

from __future__ import annotations

import atexit

from pooldrain_compare.baselines.flask_app import make_app, make_engine

engine = make_engine()
app = make_app(engine)
atexit.register(engine.dispose)
