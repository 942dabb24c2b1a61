"""Kernels of interpretability: tensors in, tensors out, shapes in the signature."""
