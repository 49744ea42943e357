"""The application that scenarios are played on: the same routes for threads and for the event loop."""
