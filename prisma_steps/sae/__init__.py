"""Sparse autoencoders: one file an architecture, how they are trained, and how good they are."""
