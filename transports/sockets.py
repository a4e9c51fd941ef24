"""TLS settings that the transports share."""

import ssl

from runtime import StartError


def tls_context(ca_file: str | None, setting: str) -> ssl.SSLContext:
    """Return a context that verifies peers by the certificates in a file, or by the system's without one.

    Args:
        setting: The name of the setting that the file comes from.

    Raises:
        StartError: if the file cannot be used.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise StartError(f"{setting}: {ca_file} cannot be used: {error.strerror or error}") from error
