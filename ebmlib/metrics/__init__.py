"""Judges of samples and of chains."""
