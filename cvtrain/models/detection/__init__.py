"""Detectors: networks that find any number of objects, each with its box."""
