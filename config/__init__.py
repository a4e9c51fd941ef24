"""Settings, composition and the command line."""

PACKAGES = ("config", "gateway", "runtime", "services", "transports")
"""The project's own."""
