"""Storage: a service's own database, and what the runtime keeps in it."""
