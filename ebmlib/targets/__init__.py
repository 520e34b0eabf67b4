"""Densities that are known exactly."""
