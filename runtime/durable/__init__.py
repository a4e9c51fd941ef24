"""Durable events and idempotent requests, kept in the databases of the services at both ends."""
