"""Compiled kernels of ray marching."""
