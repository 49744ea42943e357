"""gunicorn with its threaded worker, and with a drain."""
