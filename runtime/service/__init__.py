"""How a service is written: the class, its handlers, and the context that a handler receives."""
