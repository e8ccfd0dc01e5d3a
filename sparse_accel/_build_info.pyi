version: str
commit: str
torch_version: str
torch_cuda: str
with_cuda: bool
cuda_version: str
cuda_architectures: str
compiler: str
