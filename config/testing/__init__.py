"""Tests of a project's services: the project running in the test, clients that act as any user, and what was published.

The pytest plugin `callboard` has fixtures for all of it, so a test imports from here only what it names in annotations.
"""

from config.testing.http import Client
from config.testing.project import Project, running

__all__ = ["Client", "Project", "running"]
