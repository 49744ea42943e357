"""What it costs to look inside a service."""
