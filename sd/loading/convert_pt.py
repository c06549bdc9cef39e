"""Convert a .pt or .ckpt checkpoint of tensors to .safetensors. Code in the checkpoint is not executed.

python3 -m sd.loading.convert_pt sd-v2.1-base-4view.pt sd-v2.1-base-4view.safetensors
"""

import argparse
import pickle
import sys
from pathlib import Path

import torch
from torch import Tensor


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return a dict from names to the tensors of a checkpoint. If the checkpoint has a "state_dict", only the
    tensors in it are returned.

    Raises:
        ValueError: if the file is damaged, contains objects other than tensors, or contains no tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: cannot be read without running its code: {reason}") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    # Tensors are copied, because tensors that share memory cannot be stored in .safetensors files.
    tensors = {name: value.clone() for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: it contains no tensors by name")
    return {name: value.contiguous() for name, value in tensors.items()}


def main(arguments: list[str] | None = None) -> int:
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(prog="sd.loading.convert_pt", description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="the .pt or .ckpt file")
    parser.add_argument("target", type=Path, help="the .safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        tensors = read_tensors(options.source)
        options.target.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, options.target)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{options.target}: {len(tensors)} tensors\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
