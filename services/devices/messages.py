"""The simulated scooters publish nothing of their own: they speak the fleet's messages."""

from runtime import Contract

devices = Contract("devices")
