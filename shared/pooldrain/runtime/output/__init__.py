"""What the service says: events, the log, the transcript, the report."""
