"""Figures that count samples once, on one process or many."""
