"""Tensor Fusion (Zadeh et al. 2017) as own code of a grid."""
