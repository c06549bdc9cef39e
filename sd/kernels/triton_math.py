"""Functions for Triton kernels, computed by the fast instructions of NVIDIA GPUs.

Triton's own division and exp2 also handle subnormal numbers, which takes several times as many instructions.
The relative error of the fast instructions is about 2e-7. In Triton's interpreter, which cannot run these
instructions, Triton's own functions are used.
"""

import triton
from triton import language as tl

FAST = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def reciprocal(x):
    """Return 1 / x."""
    if FAST:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def exp2(x):
    """Return 2 to the power of x."""
    if FAST:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp2(x)


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(−x))."""
    return reciprocal(1.0 + exp2(-1.4426950408889634 * x))


@triton.jit
def gelu(x):
    """Return x Φ(x), where Φ is the normal distribution function. The absolute error of Φ is below 1e-7
    (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26).
    """
    t = reciprocal(1.0 + 0.23164189 * tl.abs(x))
    tail = t * (0.12741480 + t * (-0.14224837 + t * (0.71070687 + t * (-0.72657601 + t * 0.53070271))))
    # exp(−x² / 2)
    tail = tail * exp2(-0.72134752 * x * x)
    return x * tl.where(x >= 0.0, 1.0 - tail, tail)
