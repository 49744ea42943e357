"""As small as Django goes."""

from __future__ import annotations

import os
from urllib.parse import parse_qsl, unquote, urlsplit

_URL = urlsplit(os.environ["DATABASE_URL"])
_QUERY = dict(parse_qsl(_URL.query))

SECRET_KEY = "only an example"  # noqa: S105 - it is one
ROOT_URLCONF = "library.urls"
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
ALLOWED_HOSTS = ["*"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _URL.path.lstrip("/"),
        "USER": unquote(_URL.username or ""),
        "PASSWORD": unquote(_URL.password or ""),
        "HOST": _URL.hostname or _QUERY.get("host", ""),
        "PORT": _URL.port or _QUERY.get("port", ""),
    }
}
