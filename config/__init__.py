"""Settings, the composition root, and the command line."""

PACKAGES = ("config", "gateway", "runtime", "services", "transports")
"""The top-level packages of the project."""
