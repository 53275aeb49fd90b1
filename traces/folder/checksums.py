"""Checksums of a run folder: what meta.json says of the other files once the run is complete."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

COVERED = ("config.yaml", "summary.json", "*.parquet")  # reports attached later are not part of the run


def checksums_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a run but meta.json, by name. Raises OSError."""
    paths = sorted(path for pattern in COVERED for path in folder.glob(pattern))
    return {path.name: sha256_of(path) for path in paths}


def changed_files(folder: Path, checksums: Mapping[str, str]) -> list[str]:
    """Names of the files that are missing or hold something else than when the checksums were taken. Raises OSError."""
    return [
        name
        for name, checksum in checksums.items()
        if not (folder / Path(name).name).is_file() or sha256_of(folder / Path(name).name) != checksum
    ]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
