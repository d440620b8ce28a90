"""What differs between machines: what locks and measures, cores, units of bfloat16, a compiler that works."""

import os
import sys
from pathlib import Path

try:
    import fcntl
    import resource
except ImportError:
    print("error: Sightline needs Linux or macOS; on Windows run it in WSL (wsl --install)", file=sys.stderr)
    raise SystemExit(2) from None

__all__ = ["compiler_fault", "fcntl", "native_bfloat16", "num_cores", "own_bytes", "resource"]


def num_cores() -> int:
    """Return the cores that this process may use, as far as the system says: macOS names all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_bytes(name: str) -> int:
    """Return what Linux says of this process's memory, VmRSS now or VmHWM at the most; 0 on other systems."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else ()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def native_bfloat16(uses_cpu: bool) -> str | None:
    """Name the unit that multiplies bfloat16 on this machine, None if there is none."""
    import torch  # help texts import this file, and no torch

    if uses_cpu:
        units = torch.cpu.get_capabilities()
        return next((name for name in ("amx_bf16", "avx512_bf16") if units.get(name)), None)
    is_native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cuda.get_device_name() if is_native else None


def compiler_fault(device: object) -> str | None:
    """Compile a line for a device of torch and return what went wrong, None if it works.

    torch runs what lies in the folder of its compiler, by default in /tmp, where others may have made it.
    """
    import torch
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # slow to import

    try:
        if os.stat(folder := cache_dir()).st_uid != os.getuid():
            return f"{folder} belongs to another user; set TORCHINDUCTOR_CACHE_DIR to a folder of your own"
        torch.compile(lambda x: x.sin() + 1, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # compilers, their headers and their caches fail in many ways
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None
