"""Compile Triton kernels for a GPU on a machine without a GPU.

This finds invalid kernels, which Triton's interpreter accepts. `compile_for_gpu(code)` runs code in a
subprocess with CPU tensors. Every launch compiles the kernel for a GPU of compute capability 9.0 instead of
running it. The subprocesses are forked from a process that has imported torch and Triton without Triton's
interpreter.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
TYPES |= {"uint8": "u8", "int16": "i16", "int32": "i32", "int64": "i64"}
COMPILE = """
import json
import sys
import triton_compile
from triton.runtime.jit import JITFunction
compiled = {}
JITFunction.run = triton_compile.compile_instead(compiled)
exec(sys.argv[1])
print(json.dumps(compiled))
"""


def compile_for_gpu(code: str) -> dict[str, int]:
    """Return the number of compilations of each kernel in `code`.

    Raise AssertionError with the output of the process if the process fails.
    """
    return json.loads(run_without_interpreter(COMPILE, code)[-1])


def run_without_interpreter(code: str, *arguments: str) -> list[str]:
    """Run code in a process without Triton's interpreter. Return the lines that it prints.

    arguments: the values of sys.argv[1:]. Raise AssertionError with the output if the process fails.
    """
    server = _server()
    server.stdin.write(json.dumps([code, *arguments]) + "\n")
    server.stdin.flush()
    failed, output = json.loads(server.stdout.readline())
    assert not failed, output[-4000:]
    return output.splitlines()


@functools.cache
def _server() -> subprocess.Popen:
    """Start the process that `serve` runs in. It ends when its standard input is closed."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    here = Path(__file__).parent
    environment["PYTHONPATH"] = os.pathsep.join([str(here.parents[1]), str(here)])
    return subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


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


def serve() -> None:
    """Fork a process for each line of the standard input.

    Write whether the process failed, and its output.
    """
    import torch
    import triton.runtime.jit  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as output:
            if (child := os.fork()) == 0:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                os._exit(_execute(*json.loads(line)))
            _, status = os.waitpid(child, 0)
            output.seek(0)
            sys.stdout.write(json.dumps([status != 0, output.read()]) + "\n")
            sys.stdout.flush()


def _execute(code: str, *arguments: str) -> int:
    sys.argv[1:] = arguments
    try:
        exec(code, {"__name__": "compiled"})
        return 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    serve()
