"""Devices, versions, extras, the cluster around this process and a write test: what this machine can run."""

import dataclasses
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from qurating_jax.runtime.errors import UserError
from qurating_jax.stage import StageConfig

# The extras of pyproject.toml that users install, each with the module that tells whether it is there.
EXTRAS = {
    "judge": "openai",
    "eval": "lm_eval",
    "tracking": "tensorboardX",
    "datasets": "datasets",
    "ray": "ray",
    "gcs": "gcsfs",
    "s3": "s3fs",
    "cuda": "jax_cuda13_plugin",
    "tpu": "libtpu",
}
_PROBE = b"qurating doctor write test"


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating doctor`; `--output` is the directory of the write test (default: the current one)."""


def main(config: Config) -> dict[str, Any]:
    """Prints what it finds; raises `UserError` where JAX or the write test fails."""
    from qurating_jax.runtime import manifest

    found: dict[str, Any] = {
        "versions": manifest.versions(),
        "git_revision": manifest.git_revision(),
        "extras": {name: util.find_spec(module) is not None for name, module in EXTRAS.items()},
        "cpu_cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
    }
    # What is known is printed before anything that may fail.
    for title, value in (*found["versions"].items(), ("revision", found["git_revision"] or "not a checkout")):
        print(f"{title:<20} {value}")
    for name, present in found["extras"].items():
        print(f"extra {name:<14} {'installed' if present else f'missing (pip install qurating-jax[{name}])'}")
    memory = found["memory_bytes"]
    print(f"{'host':<20} {found['cpu_cores']} cores, {_gib(memory) if memory else 'unknown'} memory")
    found["jax"] = _jax()
    print(f"{'jax backend':<20} {found['jax']['backend']}")
    for device in found["jax"]["devices"]:
        print(f"  {device['name']:<18} {device['kind']}{', ' + _gib(device['bytes']) if device['bytes'] else ''}")
    found["cluster"] = _cluster()
    if not config.dry_run:
        tested, found["free_bytes"] = _write_test(config.output or str(Path.cwd()))
        free = f", {_gib(found['free_bytes'])} free" if found["free_bytes"] else ""
        print(f"{'write test':<20} ok in {tested}{free}")
    return found


def _jax() -> dict[str, Any]:
    """Backend and devices, after one small computation on the first."""
    try:
        import jax
        import jax.numpy as jnp

        total = int(jnp.arange(10).sum())
        devices = jax.devices()
    except (ImportError, RuntimeError) as error:
        raise UserError(f"JAX does not run here: {' '.join(str(error).split())}") from None
    if total != 45:
        raise UserError(f"JAX computes wrongly on {devices[0]}: the sum of 0..9 came out as {total}")
    return {
        "backend": jax.default_backend(),
        "num_processes": jax.process_count(),
        "devices": [
            {"name": str(device), "kind": device.device_kind, "bytes": (device.memory_stats() or {}).get("bytes_limit")}
            for device in devices
        ],
    }


def _cluster() -> dict[str, Any] | None:
    """What `--distributed.mode auto` would find; None outside of a cluster."""
    from qurating_jax.parallel.distributed import find_cluster

    place = find_cluster(timeout_seconds=10)
    if place is None:
        print(f"{'cluster':<20} none: one process, or --distributed.mode explicit")
        return None
    print(
        f"{'cluster':<20} {place.cluster}: process {place.process_id} of {place.num_processes}, process 0 at "
        f"{place.coordinator} (--distributed.mode auto)"
    )
    return dataclasses.asdict(place)


def _write_test(directory: str) -> tuple[str, int | None]:
    """Writes, reads and removes one small file; returns the directory it used and the free bytes of a local disk."""
    from qurating_jax.runtime import storage

    try:
        if storage.is_remote(directory):
            _probe(storage.join(directory, ".qurating-doctor"))
            return directory, None
        # The nearest directory that exists: the test leaves nothing behind, not even the output directory.
        existing = next(
            path for path in (Path(directory).absolute(), *Path(directory).absolute().parents) if path.exists()
        )
        with tempfile.TemporaryDirectory(prefix=".qurating-doctor-", dir=existing) as inside:
            _probe(storage.join(inside, "probe"))
        return str(existing), shutil.disk_usage(existing).free
    except (OSError, ImportError, ValueError) as error:
        raise UserError(
            f"{directory}: cannot write there ({' '.join(str(error).split())}); choose another --output"
        ) from None


def _probe(path: str) -> None:
    from qurating_jax.runtime import storage

    with storage.atomic_write(path) as stream:
        stream.write(_PROBE)
    with storage.open_read(path) as stream:
        same = stream.read() == _PROBE
    storage.remove_tree(path)
    if not same:
        raise OSError("what was written came back changed")


def _memory_bytes() -> int | None:
    """The machine's memory; None where the system does not tell (Windows)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
