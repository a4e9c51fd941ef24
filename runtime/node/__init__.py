"""The process: a node, its supervised instances, and everything that arrives from the network."""
