"""What a measurement ran on: hardware, system and versions, as far as they can be read without more rights."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

import msgspec

from .words import counted

TELLING = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
PACKAGES = ("l2c-export", "numpy", "torch")


class Gpu(msgspec.Struct, frozen=True):
    """Clocks are those of the moment, in MHz."""

    name: str
    driver: str
    clock_mhz: int | None
    max_clock_mhz: int | None


class Machine(msgspec.Struct, frozen=True):
    """`load_average` is of the last minute before the start: what else the machine was doing."""

    cpu: str
    flags: tuple[str, ...]  # the instruction sets that matter here
    cores: int  # that this process may use
    clock_mhz: float | None
    memory_bytes: int | None
    gpus: tuple[Gpu, ...]
    os: str
    versions: dict[str, str]
    load_average: float | None

    def describe(self) -> str:
        """One line."""
        gpus = "".join(f", {gpu.name}" for gpu in self.gpus)
        return f"{self.cpu} ({' '.join(self.flags) or 'no known flags'}), {counted(self.cores, 'core')}{gpus}"


def examine(packages: Iterable[str] = ()) -> Machine:
    """This one, with the versions of some packages more."""
    info = cpuinfo()
    return Machine(
        cpu=info.get("model name") or platform.processor() or platform.machine(),
        flags=tuple(f for f in TELLING if f in (info.get("flags") or info.get("Features") or "").split()),
        cores=cores(),
        clock_mhz=round(float(info["cpu MHz"])) if "cpu MHz" in info else None,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        gpus=gpus(),
        os=platform.platform(),
        versions={"python": platform.python_version(), **{p: v for p in (*PACKAGES, *packages) if (v := version(p))}},
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


def cores() -> int:
    """How many cores this process may use: those of its affinity, within the limit of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = quota(Path("/sys/fs/cgroup"))
    # rounded down: with more threads than that all of them stand still for a part of every period
    return allowed if limit is None else max(1, min(allowed, int(limit)))


def quota(groups: Path) -> float | None:
    """The processor time per time that the control group may take (version 2 or 1); None without a limit."""
    files = ("cpu.max",) if (groups / "cpu.max").exists() else ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
    try:
        limit, period = " ".join((groups / name).read_text() for name in files).split()
        share = int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # there is none, or it is "max"
        return None
    return share if share > 0 else None


def version(package: str) -> str | None:
    from importlib import metadata  # slow to import, and not asked where an artefact is loaded

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def gpus() -> tuple[Gpu, ...]:
    rows = nvidia_smi("name", "driver_version", "clocks.sm", "clocks.max.sm")
    return tuple(Gpu(name, driver, number(now), number(most)) for name, driver, now, most in rows)


def gpu_bytes_used() -> int | None:
    """Bytes of GPU memory in use by everybody; None without an NVIDIA GPU."""
    used = [number(value) for (value,) in nvidia_smi("memory.used")]
    return sum(mib or 0 for mib in used) * 2**20 if used else None


def nvidia_smi(*fields: str) -> list[list[str]]:
    """One row per GPU; none where the tool is missing or fails."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in process.stdout.splitlines() if line.strip()]


def number(text: str) -> int | None:
    return int(float(text)) if text.replace(".", "", 1).isdigit() else None


def peak_host_bytes() -> int | None:
    """The most memory that this process has had resident, mapped files included; None where /proc is missing."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
