"""Adapters: how each server drains and stops. Each patches internals of a pinned version of its server."""
