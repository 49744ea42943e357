"""The threaded (WSGI) shell of pooldrain: Flask on gunicorn or waitress."""
