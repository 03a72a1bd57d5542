"""Kernels over jagged rows; callers go through `dispatch`."""
