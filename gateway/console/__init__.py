"""The console at `/console`: what a developer or an operator sees of the running system in a browser, and repairs there."""
