"""What this installation uses: versions, processor, native kernels, caches and memory."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("hanax", "jax", "jaxlib", "flax", "optax", "optuna", "onnxruntime")
HUGE_PAGES_FILE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGES_SETTING = "glibc.malloc.hugetlb=1"

Facts = dict[str, Any]


def examine() -> Facts:
    """The facts, as JSON values; compiles the native kernels if that was not done before.

    ``versions`` (of Python and packages; None where one is missing), ``backend`` and ``devices`` of JAX, ``cores``
    (``usable`` by this process, and ``all``), ``native_kernels`` (``used``, ``reason``), ``cache`` (``folder`` for what
    can be made again, and ``compiled_code`` within it or where JAX is told to keep it), ``memory`` (``malloc``;
    ``keeps_freed_memory``: whether it can be told to; ``huge_pages``: the ``system``'s mode or None, ``malloc_setting``
    in the environment or None, and whether malloc is ``used`` with them in commands that train).
    """
    import jax

    from hanax._files import cache_folder
    from hanax.supernet import keep_compiled_code, keep_freed_memory, native_status

    native = native_status()
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "backend": jax.default_backend(),
        "devices": [str(device) for device in jax.local_devices()],
        "cores": {"usable": len(os.sched_getaffinity(0)), "all": os.cpu_count()},
        "native_kernels": {"used": native.available, "reason": native.reason},
        "cache": {"folder": str(cache_folder()), "compiled_code": str(keep_compiled_code())},
        "memory": {
            "malloc": " ".join(platform.libc_ver()).strip() or "unknown",
            "keeps_freed_memory": keep_freed_memory(),
            "huge_pages": _huge_pages(),
        },
    }


def describe(facts: Facts) -> list[tuple[str, str]]:
    """The facts as lines for a person: name and state."""
    cores, native, cache, memory = (facts[name] for name in ("cores", "native_kernels", "cache", "memory"))
    huge_pages = memory["huge_pages"]
    return [
        *((name, found or "not installed") for name, found in facts["versions"].items()),
        ("JAX runs on", f"{facts['backend']}: {', '.join(facts['devices'])}"),
        ("cores", f"{cores['usable']} of {cores['all']} usable"),
        ("native kernels", f"{'in use' if native['used'] else 'not in use'}: {native['reason']}"),
        ("cache", cache["folder"]),
        ("compiled code", cache["compiled_code"]),
        ("malloc", f"{memory['malloc']}; {'keeps' if memory['keeps_freed_memory'] else 'cannot keep'} freed memory"),
        (
            "huge pages",
            f"{'in use while training' if huge_pages['used'] else 'not in use'}: the system's mode is "
            f"{huge_pages['system'] or 'unknown'}, GLIBC_TUNABLES is {huge_pages['malloc_setting'] or 'not set'}",
        ),
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _huge_pages() -> dict[str, Any]:
    """The system offers them, and malloc asks for them: told so by the environment or, if that is silent, by Hanax."""
    system = _huge_pages_mode()
    setting = os.environ.get("GLIBC_TUNABLES")
    is_asked = HUGE_PAGES_SETTING in (HUGE_PAGES_SETTING if setting is None else setting)
    is_glibc = platform.libc_ver()[0] == "glibc"
    return {
        "system": system,
        "malloc_setting": setting,
        "used": is_glibc and is_asked and system in ("always", "madvise"),
    }


def _huge_pages_mode() -> str | None:
    """The mode in brackets, as in ``always [madvise] never``."""
    try:
        text = HUGE_PAGES_FILE.read_text(encoding="utf-8")
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0] or None
