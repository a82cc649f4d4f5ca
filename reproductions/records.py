"""Records of runs and checkpoints, written atomically and read with suspicion."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from .errors import SuiteError

RESULTS = Path(__file__).parent / "results"
SCHEMA = 1
# What every record has; `network_name` and `t_max` are completed where an older one lacks them.
KEYS = (
    "schema", "name", "method", "dataset", "config", "config_hash", "seed",
    "versions", "commit", "machine", "wall_time_s", "history", "test",
)  # fmt: skip
CHECKPOINT_KEYS = {"config_hash", "track_test", "state", "method"}


def record_path(results: Path, name: str, seed: int) -> Path:
    """Where the record of a run is kept."""
    return results / f"{name}-seed{seed}.json"


def checkpoint_path(results: Path, name: str, seed: int) -> Path:
    """Where the checkpoint of a run in progress is kept."""
    return results / "checkpoints" / f"{name}-seed{seed}.pt"


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that takes its place only when it is complete."""
    require_writable(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def require_writable(folder: Path) -> None:
    """Create a folder, or say why nothing can be written there.

    Raises:
        SuiteError: names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SuiteError(
            f"{folder}: nothing can be written there ({error.strerror}); name another folder"
        ) from error


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON."""
    with atomic_write(path) as file:
        json.dump(record, file, indent=1)
        file.write("\n")


def read_record(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        SuiteError: names the file that is cut short or is no record of this version.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: not a complete record ({error}); delete it and run again") from error
    missing = [key for key in KEYS if key not in record] if isinstance(record, dict) else list(KEYS)
    if missing:
        raise SuiteError(f"{path}: not a record, it lacks {', '.join(missing)}; delete it and run again")
    if record["schema"] != SCHEMA:
        raise SuiteError(f"{path}: written by another version (schema {record['schema']}, expected {SCHEMA})")
    network = record["config"]["network"]
    record.setdefault("t_max", network["t_max"])
    record.setdefault("network_name", "-".join(map(str, network.get("hidden", []))))
    return record


def read_all(results: Path) -> list[dict[str, Any]]:
    """All records of a folder, by file name."""
    return [read_record(path) for path in sorted(results.glob("*.json"))]


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and plain values."""
    with atomic_write(path, "wb") as file:
        torch.save(content, file)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing but tensors and plain values is unpickled.

    Raises:
        SuiteError: names the file that cannot be read.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        kind = type(error).__name__
        raise SuiteError(
            f"{path}: the checkpoint cannot be read ({kind}); start again with --overwrite"
        ) from error
    if not isinstance(content, dict) or set(content) != CHECKPOINT_KEYS:
        raise SuiteError(f"{path}: not a checkpoint of this version; start again with --overwrite")
    return content


def versions() -> dict[str, str]:
    """Python and the packages that the numbers rest on."""
    names = ("ssnn-plugin", "torch", "numpy", "numba", "torchvision", "scikit-learn")
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str:
    """Commit of the working tree, with "-dirty" where code was changed since; "unknown" outside it."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        changed = git("status", "--porcelain", "--", "../ssnn_plugin", "../reproductions", ":!results")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine(device: str) -> dict[str, Any]:
    """What the wall time was measured on."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
    }
