"""Loops over single samples that torch has no operations for, compiled by numba."""
