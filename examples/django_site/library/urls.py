"""The routes, and what answers them."""

from __future__ import annotations

from django.db import connection
from django.http import HttpRequest, JsonResponse
from django.urls import path


def slow(request: HttpRequest) -> JsonResponse:
    """A query of so many seconds."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [float(request.GET["s"])])
    return JsonResponse({"slow": True})


urlpatterns = [path("slow", slow)]
