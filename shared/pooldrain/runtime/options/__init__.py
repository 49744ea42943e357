"""What the user asks for: options and variables, the database URL, the application."""
