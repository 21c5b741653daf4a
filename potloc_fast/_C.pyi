"""The extension: importing it registers its operators under `torch.ops.potloc_fast`."""

compiler: str
cuda_architectures: str

def cpu_capability() -> str:
    """The instruction set that the CPU kernels use: baseline, avx2 or avx512."""
