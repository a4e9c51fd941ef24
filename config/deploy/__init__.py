"""Deployments that are derived from a project: for Kubernetes, for compose, and for systemd."""
