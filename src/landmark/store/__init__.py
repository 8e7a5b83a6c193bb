"""Stores of the keys and values of blocks: on the device, tiered, in files."""
