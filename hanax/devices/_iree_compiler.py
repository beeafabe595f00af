"""Compiling for another processor: IREE's compiler, in the worker that has it."""

from __future__ import annotations

import subprocess

from hanax.devices._runtimes import RUNTIMES, RuntimeMissingError, runtime_python

CORTEX_A53 = ("--iree-llvmcpu-target-triple=aarch64-unknown-linux-gnu", "--iree-llvmcpu-target-cpu=cortex-a53")
"""What IREE's compiler is told of the processor that the emulator is."""

PROGRAM = """
import sys
import iree.compiler
compiled = iree.compiler.compile_str(
    sys.stdin.buffer.read(), target_backends=["llvm-cpu"], input_type="stablehlo", extra_args=sys.argv[1:]
)
sys.stdout.buffer.write(compiled)
"""

TIMEOUT_S = 600.0


class CompileError(RuntimeError):
    """IREE's compiler failed; has its last words."""


def compile_with_iree(mlir: bytes, target: tuple[str, ...] = CORTEX_A53) -> bytes:
    """A module for IREE's runtime on the processor `target`, from StableHLO as MLIR bytecode; takes some seconds.

    Raises:
        RuntimeMissingError: IREE's compiler is not installed here.
        CompileError: It failed, or took more than ten minutes.
    """
    python = runtime_python(RUNTIMES["iree"])
    if python is None:
        raise RuntimeMissingError("IREE's compiler is missing; `hanax devices install iree-fp32` adds it")
    try:
        ran = subprocess.run(
            [python, "-P", "-c", PROGRAM, *target], input=mlir, capture_output=True, check=False, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise CompileError(f"IREE's compiler did not end within {TIMEOUT_S:g} s") from None
    if ran.returncode or not ran.stdout:
        said = ran.stderr.decode("utf-8", errors="replace").strip().splitlines()[-8:]
        raise CompileError("IREE's compiler failed:\n" + "\n".join(said))
    return ran.stdout
