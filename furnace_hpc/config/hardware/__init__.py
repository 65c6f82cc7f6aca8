"""Facts about GPUs: peaks of models, drivers that CUDA needs, and what NVML reports.

Nothing here imports torch. NVML is read only if the package nvidia-ml-py is installed.
"""
