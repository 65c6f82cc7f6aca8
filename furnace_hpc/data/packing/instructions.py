"""Let numpy and OpenBLAS use the same instructions on every x86-64 CPU with AVX2.

Both choose instructions by the CPU, and each choice rounds differently. Speech, resampling and
resizing would then give other bytes on another CPU. The libraries read these variables once, so
they are set before numpy is imported. Worker processes inherit them.
"""

import os

from furnace_hpc.host.portable import missing_instructions

ENVIRONMENT = {
    "OPENBLAS_CORETYPE": "Haswell",
    # Names of numpy 2.4, and of earlier versions. numpy ignores names that it does not have.
    "NPY_DISABLE_CPU_FEATURES": (
        "X86_V4 AVX512_ICL AVX512_SPR "
        "AVX512F AVX512CD AVX512_KNL AVX512_KNM AVX512_SKX AVX512_CLX AVX512_CNL"
    ),
}


def fix_instructions() -> None:
    """Set the variables. A CPU without AVX2 could not run these, and keeps its own choice."""
    if not missing_instructions():
        os.environ.update(ENVIRONMENT)
