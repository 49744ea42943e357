"""Flask for gunicorn, whose `worker_exit` hook (gunicorn_conf.py) disposes of the engine."""

from __future__ import annotations

from pooldrain_compare.baselines.flask_app import make_app, make_engine

engine = make_engine()
app = make_app(engine)
