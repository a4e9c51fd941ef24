"""The contract of the devices service. It has no messages: the simulated scooters use those of the fleet."""

from runtime import Contract

devices = Contract("devices")
