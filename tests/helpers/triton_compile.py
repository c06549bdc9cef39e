"""Compile Triton kernels for a GPU on a machine without a GPU.

The compiler rejects invalid kernels that Triton's interpreter accepts. `compile_for_gpu(code)` runs code in a
subprocess with CPU tensors. Every launch compiles the kernel for a GPU of compute capability 9.0 instead of
running it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
TYPES |= {"uint8": "u8", "int16": "i16", "int32": "i32", "int64": "i64"}


def compile_for_gpu(code: str) -> dict[str, int]:
    """Return the number of compilations of each kernel in `code`.

    Raise AssertionError with the output of the process if the process fails.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, __file__],
        input=code,
        text=True,
        capture_output=True,
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def compile_instead(found: dict[str, int]):
    """Return a replacement for `JITFunction.run` that compiles the kernel and counts it in `found`."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    seen = set()

    def run(kernel, *given, grid, warmup, **named):
        values = dict(zip(kernel.arg_names, given, strict=False)) | named
        signature, constants, divisible = {}, {}, {}
        for number, parameter in enumerate(kernel.params):
            value, special = values.get(parameter.name, parameter.default), not parameter.do_not_specialize
            if isinstance(value, torch.Tensor):
                kind = "*" + TYPES[str(value.dtype).removeprefix("torch.")]
            elif parameter.is_constexpr or value is None or (special and type(value) is int and value == 1):
                kind, constants[parameter.name] = "constexpr", value
            else:
                kind = {bool: "i1", int: "i32", float: "fp32"}[type(value)]
                assert type(value) is not int or value < 2**31
            if kind[0] == "*" or (kind == "i32" and special and value % 16 == 0):
                divisible[(number,)] = [["tt.divisibility", 16]]
            signature[parameter.name] = kind
        key = (kernel, *signature.items(), *constants.items(), *divisible)
        if key not in seen:
            seen.add(key)
            source = ASTSource(kernel, signature, constants, divisible)
            assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
            found[kernel.__name__] = found.get(kernel.__name__, 0) + 1

    return run


if __name__ == "__main__":
    from triton.runtime.jit import JITFunction

    compiled: dict[str, int] = {}
    JITFunction.run = compile_instead(compiled)
    exec(sys.stdin.read())
    sys.stdout.write(json.dumps(compiled) + "\n")
