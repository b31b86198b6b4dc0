"""A bundle on disk: opens the manifest and hands out files, each hashed before it is used.

What is hashed is what is returned: a file is read once, into memory, so that nothing can be swapped between
the check and the use. Knows neither engines nor images.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from samdistill.errors import BundleError
from samdistill.manifest import MANIFEST, MAX_MANIFEST_BYTES, FileRecord, Manifest, parse


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes
    ----------
    root
        Its folder, absolute.
    manifest
        What it says of itself.
    sha256
        Of `manifest.json`. Since that holds the hash of every other file, it names the whole bundle.
    """

    root: Path
    manifest: Manifest
    sha256: str

    @classmethod
    def open(cls, path: Path | str, *, expect_sha256: str | None = None) -> Bundle:
        """Open a bundle; only its manifest is read.

        Parameters
        ----------
        path
            The bundle's folder.
        expect_sha256
            Pins the bundle from outside: the SHA-256 its manifest must have.

        Raises
        ------
        BundleError
            When there is no manifest, it is not valid, or its hash is another than expected.
        """
        root = Path(path).absolute()
        if not root.is_dir():
            raise BundleError(f"{path} is no bundle: there is no such folder.")
        text = _read(root, MANIFEST, MAX_MANIFEST_BYTES)
        if len(text) > MAX_MANIFEST_BYTES:
            raise BundleError(f"{MANIFEST} must have at most {MAX_MANIFEST_BYTES} bytes, not more.")
        sha256 = hashlib.sha256(text).hexdigest()
        if expect_sha256 is not None and sha256 != expect_sha256.lower():
            raise BundleError(f"{path} must have the SHA-256 {expect_sha256.lower()}, not {sha256}.")
        return cls(root, parse(text), sha256)

    def read(self, path: str) -> bytes:
        """Read one listed file whole and check it against the manifest.

        Raises
        ------
        BundleError
            When the manifest does not list it, or length or hash differ.
        """
        for record in self.manifest.files:
            if record.path == path:
                return _read_checked(self.root, record)
        raise BundleError(f"{path} must be listed in {MANIFEST} to be used.")

    def check_files(self) -> int:
        """Check the hash of every listed file, and that nothing else lies in the bundle.

        Returns
        -------
        int
            How many files were checked.

        Raises
        ------
        BundleError
            For the first file that is missing, differs, or is not listed.
        """
        for record in self.manifest.files:
            _read_checked(self.root, record)
        listed = {MANIFEST, *(record.path for record in self.manifest.files)}
        for folder, folders, names in os.walk(self.root, onerror=_unreadable):
            links = [name for name in folders if Path(folder, name).is_symlink()]
            for name in (*names, *links):
                found = Path(folder, name).relative_to(self.root).as_posix()
                if found not in listed:
                    raise BundleError(f"{found} lies in the bundle, but {MANIFEST} does not list it.")
        return len(self.manifest.files)


def _read_checked(root: Path, record: FileRecord) -> bytes:
    content = _read(root, record.path, record.bytes)
    sha256 = hashlib.sha256(content).hexdigest()
    if len(content) < record.bytes:
        wrong = f"{record.bytes} bytes, not {len(content)}: it was cut short"
    elif len(content) > record.bytes:
        wrong = f"{record.bytes} bytes, not more: it was changed after export"
    elif sha256 != record.sha256:
        wrong = f"the SHA-256 {record.sha256}, not {sha256}: it was changed after export"
    else:
        return content
    raise BundleError(f"{record.path} must have {wrong}. Copy the bundle again from where it was exported.")


def _unreadable(error: OSError) -> None:
    raise BundleError(f"{error.filename} in the bundle cannot be read: {error.strerror}.") from error


def _read(root: Path, path: str, most: int) -> bytes:
    """Read a regular file that lies in the bundle itself, not behind a link.

    Of a file that is too long one byte more than `most`: the caller refuses it.
    """
    file = root / path
    try:
        resolved = file.resolve(strict=True)
        if not resolved.is_relative_to(root.resolve()) or not stat.S_ISREG(resolved.stat().st_mode):
            raise BundleError(f"{path} must be a regular file inside the bundle, not a link out of it.")
        with resolved.open("rb") as opened:
            # No more memory than the file needs, whatever length the manifest gives it.
            return opened.read(min(most, os.fstat(opened.fileno()).st_size) + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read from the bundle: {error.strerror}.") from error
    except RuntimeError as error:  # of links in a circle, before Python 3.13
        raise BundleError(f"{path} cannot be read from the bundle: {error}.") from error
