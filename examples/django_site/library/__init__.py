"""A Django site without models: its connections are Django's own."""
