"""Distributions over the architectures of a space."""
