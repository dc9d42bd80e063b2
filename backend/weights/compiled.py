"""The loops as machine code: compiled by numba once on each machine, kept on the disk, loaded by llvmlite from then on.

Importing numba takes a quarter of a second and 40 MiB in every process, loading what it once compiled a few
milliseconds. Where neither is installed there is no machine code, and kernels.py computes the same in NumPy.
"""

import ctypes
import hashlib
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from backend.disk import write_whole

Function = Callable[..., Any]

SIGNATURES = {"largest": "xi:i", "pack": "xiBF:", "narrow": "IiH:", "quantize_rows": "HiibF:", "sum_in_order": "FiiF:f",
              "quantize_scales": "FifBBF:", "merge": "xiiiDDDDDI:", "magnitudes": "xiiiF:",
              "encode": "xiiiFiBB:"}  # fmt: skip
"""Parameters and result of a loop, by its name or the word that several begin with: i int64, f float32, and pointers to
x the bits of the type that ends its name, B uint8, b int8, H uint16, I uint32, F float32, D float64."""

_DIGEST = hashlib.sha256().digest_size

_BITS = {"BF16": "H", "F16": "H", "F32": "I"}

_loaded: list[Any] = []  # what must live as long as the functions do


@cache
def compiled(name: str) -> Function | None:
    """Return a loop of loops.LOOPS as a function that lets other threads run; None where there is no numba."""
    try:
        import llvmlite.binding as llvm
    except ImportError:
        return None
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    parameters, result = _signature(name).split(":")
    code = _machine_code(name)
    if code is None:
        return None
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(llvm))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _loaded.append(engine)
    kinds: dict[str, Any] = {"i": ctypes.c_int64, "f": ctypes.c_float, "": None}
    prototype = ctypes.CFUNCTYPE(kinds[result], *(kinds.get(p, ctypes.c_void_p) for p in parameters))
    function = prototype(engine.get_function_address(name))

    def call(*arguments: Any) -> Any:
        return function(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))

    return call


def _signature(name: str) -> str:
    words = name.split("_")
    return SIGNATURES.get(name) or SIGNATURES[words[0]].replace("x", _BITS[words[-1]])


def _machine(llvm: Any) -> Any:
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )


def _machine_code(name: str) -> bytes | None:
    """Read a loop's object file; make it where there is none for this processor and these sources."""
    for folder in (Path(__file__).parent / "__pycache__", Path.home() / ".cache" / "weightsmith"):
        kept = folder / f"{name}-{_state()}.o"
        if kept.is_file() and (code := unsigned(kept.read_bytes())):
            return code
    code = _compile_apart(name)
    if code is not None:
        _keep(kept.name, code)
    return code


def _compile_apart(name: str) -> bytes | None:
    """Compile a loop in a process of its own: this one would keep the memory that numba takes."""
    if find_spec("numba") is None:
        return None
    command = [sys.executable, "-m", "backend.weights.compiled", name]
    return subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, check=True).stdout


def _keep(file: str, code: bytes) -> None:
    """Put an object file where a later process finds it: beside the sources, or in the user's own cache."""
    for folder in (Path(__file__).parent / "__pycache__", Path.home() / ".cache" / "weightsmith"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / file, signed(code))
        except OSError:
            continue
        return


def signed(code: bytes) -> bytes:
    """Return machine code as it is kept: it is run as it stands, so that damage must be seen before."""
    return code + hashlib.sha256(code).digest()


def unsigned(kept: bytes) -> bytes | None:
    """Return the machine code that signed() was given; None where it is damaged."""
    code, digest = kept[:-_DIGEST], kept[-_DIGEST:]
    return code if hashlib.sha256(code).digest() == digest else None


@cache
def _state() -> str:
    """Name what the machine code depends on: sources, compiler, processor."""
    import llvmlite.binding as llvm

    sources = b"".join((Path(__file__).parent / f).read_bytes() for f in ("codes.py", "compiled.py", "loops.py"))
    machine = llvm.get_host_cpu_name() + llvm.get_host_cpu_features().flatten()
    return hashlib.sha256(sources + f"{_version('numba')} {_version('llvmlite')} {machine}".encode()).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _compile(name: str) -> bytes:
    """Compile a loop to an object file that refers to nothing outside itself."""
    import llvmlite.binding as llvm
    from numba import cfunc, types

    from backend.weights.loops import LOOPS  # noqa: PLC0415 - imports numba

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    pointers = {
        "B": types.uint8,
        "b": types.int8,
        "H": types.uint16,
        "I": types.uint32,
        "F": types.float32,
        "D": types.float64,
    }
    pointer: Any = types.CPointer
    kinds: dict[str, Any] = {letter: pointer(kind) for letter, kind in pointers.items()}
    kinds |= {"i": types.int64, "f": types.float32, "": types.void}
    parameters, result = _signature(name).split(":")
    made = cfunc(kinds[result](*(kinds[p] for p in parameters)), error_model="numpy")(LOOPS[name])
    text = made.inspect_llvm().replace(made.native_name, name)
    module = llvm.parse_assembly(text)
    for function in module.functions:
        if not function.is_declaration and function.name != name:
            function.linkage = "internal"  # numba's own helpers, which nothing calls: they go with the next pass
    machine = _machine(llvm)
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(3)))
    outside = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    assert not outside, f"'{name}' calls {outside}, which is not there without numba"
    return bytes(machine.emit_object(module))


if __name__ == "__main__":
    sys.stdout.buffer.write(_compile(sys.argv[1]))
