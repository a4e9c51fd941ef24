"""Running handlers: from the arrival of a message to its outcome, and the requests that handlers make."""
