built_with_torch: str
built_with_nvcc: str
cuda_architectures: str
cuda_left_out: str

def cpu_isa() -> str: ...
def cpu_multiplies_bfloat16() -> bool: ...
