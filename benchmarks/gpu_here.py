"""Say which GPU `make test-gpu` would use; end with an error where there is none."""

import sys

import torch

from benchmarks.gpu import described


def main() -> int:
    """Return 1 where there is none."""
    if not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "its CPU build, so: make setup TORCH=cuda"
        print(f"test-gpu: torch {torch.__version__} sees no GPU here ({build})", file=sys.stderr)
        return 1
    print(f"test-gpu: {torch.cuda.device_count()} GPU(s); the first: {described(torch.device('cuda', 0))}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
