"""One module a kernel; all compute the same function of the same parameters (see `torch_kernel` for the reference)."""
