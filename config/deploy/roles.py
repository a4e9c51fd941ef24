"""The roles of a PostgreSQL database: one for each service, which owns a schema and sees no other one."""

import base64
import hashlib
import hmac
from collections.abc import Mapping

_ITERATIONS = 4096
"""PostgreSQL's default. More are not needed, because these passwords are random."""


def create_roles(passwords: Mapping[str, str]) -> str:
    """Return the statements that make a role and a schema for each service. They can be run again.

    Args:
        passwords: the password of each service. The statements have only their SCRAM-SHA-256 verifiers (RFC 5803).
    """
    lines = [
        "-- Run this once as the owner of the database: psql --file=postgresql-roles.sql postgresql://owner@host/database",
        "REVOKE ALL ON SCHEMA public FROM PUBLIC;",
        "DO $$ BEGIN EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database()); END $$;",
    ]
    for name, password in passwords.items():
        role, literal = f'"{name}"', f"'{name}'"
        lines += [
            "",
            f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {literal}) THEN CREATE ROLE {role}; END IF; END $$;",
            f"ALTER ROLE {role} WITH LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD '{verifier(password)}';",
            f"ALTER ROLE {role} SET search_path = {role};",
            f"DO $$ BEGIN EXECUTE format('GRANT CONNECT ON DATABASE %I TO {role}', current_database()); END $$;",
            f"GRANT {role} TO CURRENT_USER;",
            f"CREATE SCHEMA IF NOT EXISTS {role} AUTHORIZATION {role};",
        ]
    return "\n".join(lines) + "\n"


def verifier(password: str) -> str:
    """Return the SCRAM-SHA-256 verifier of a password, as PostgreSQL stores it."""
    salt = hashlib.sha256(f"salt {password}".encode()).digest()[:16]  # the same each time; the password is random
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256${_ITERATIONS}:{_base64(salt)}${_base64(stored)}:{_base64(server)}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
