"""All that knows SQLAlchemy: the closable pools, who holds what of them, and what its drivers are asked."""
