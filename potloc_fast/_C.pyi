"""The extension: importing it registers its operators under `torch.ops.potloc_fast`."""

compiler: str
cuda_architectures: str  # what the CUDA kernels were built for, "" without any
without_cuda: str  # why there are no CUDA kernels, "" where there are

def cpu_capability() -> str:
    """The instruction set that the CPU kernels use: baseline, avx2 or avx512."""
