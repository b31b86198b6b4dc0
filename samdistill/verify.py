"""Does a bundle still give the masks it was published with: hashes of all files, then its golden cases.

Also the golden cases' file format, which export writes and verification reads: an npz of plain arrays with
`pixels` (raw, as a file would hold them), `masks` (C, H, W) bool packed into bits, and `probability_maps`
(C, H, W) as uint16 of p x 65535. Needs no torch and no real image.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samdistill.arrays import Masks, ProbabilityMaps
from samdistill.bundle import Bundle
from samdistill.errors import BundleError
from samdistill.manifest import GoldenRecord
from samdistill.predictor import Pixels, Predictor, Segmentation

_LEVELS = np.float32(65535)


@dataclass(frozen=True)
class GoldenCase:
    """A made-up picture with the answer expected for it.

    Attributes
    ----------
    pixels
        (H, W) or (H, W, 3), before the intensity rule.
    masks
        (C, H, W) bool.
    probability_maps
        (C, H, W) float32, to 1 / 65535.
    """

    pixels: Pixels
    masks: Masks
    probability_maps: ProbabilityMaps

    def to_npz(self) -> bytes:
        """The case as a bundle holds it; equal cases give equal bytes."""
        file = io.BytesIO()
        np.savez_compressed(
            file,
            pixels=self.pixels,
            masks=np.packbits(self.masks),
            probability_maps=np.rint(self.probability_maps * _LEVELS).astype(np.uint16),
        )
        return file.getvalue()

    @classmethod
    def from_npz(cls, content: bytes, name: str) -> GoldenCase:
        """Read a case back; `name` is for messages.

        Raises
        ------
        BundleError
            When it is no such file.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                pixels, bits, levels = arrays["pixels"], arrays["masks"], arrays["probability_maps"]
            masks = np.unpackbits(bits, count=levels.size).reshape(levels.shape).astype(bool)
            maps = levels.astype(np.float32) / _LEVELS
        except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{name} is no golden case: {error}.") from error
        return cls(pixels, masks, maps)


@dataclass(frozen=True)
class GoldenResult:
    """How far a bundle's answer is from a golden case.

    Attributes
    ----------
    name
        Of the case.
    max_probability_difference
        Over all pixels and classes.
    changed_pixels
        Largest share of an image's pixels that differ in any one mask.
    passed
        Both within what the manifest allows.
    """

    name: str
    max_probability_difference: float
    changed_pixels: float
    passed: bool


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes
    ----------
    bundle_sha256
        The bundle's own hash.
    files
        How many files were hashed.
    runtime, provider
        What computed the golden cases.
    golden
        One result a case.
    """

    bundle_sha256: str
    files: int
    runtime: str
    provider: str
    golden: tuple[GoldenResult, ...]


def verify(
    bundle: Path | str,
    *,
    device: str = "cpu",
    runtime: str = "auto",
    expect_sha256: str | None = None,
) -> Verification:
    """Hash every file of a bundle and compute its golden cases again.

    Parameters
    ----------
    bundle, device, runtime, expect_sha256
        As for `Predictor.load`.

    Raises
    ------
    BundleError
        When a file is missing, changed or unlisted, or a golden case comes out otherwise.
    DeviceUnavailable
        When the runtime or the device cannot be had.
    """
    opened = Bundle.open(bundle, expect_sha256=expect_sha256)
    files = opened.check_files()
    predictor = Predictor.load(bundle, device, runtime, expect_sha256=opened.sha256)
    results = []
    for record in opened.manifest.golden:
        case = GoldenCase.from_npz(opened.read(record.file), record.file)
        try:
            results.append(compare(predictor.predict(case.pixels), case, record))
        except ValueError as error:
            raise BundleError(f"golden case {record.name} cannot be computed: {error}") from error
    failed = [result for result in results if not result.passed]
    if failed:
        worst = max(failed, key=lambda result: result.max_probability_difference)
        record = next(case for case in opened.manifest.golden if case.name == worst.name)
        raise BundleError(
            f"{len(failed)} of {len(results)} golden cases come out otherwise on {predictor.provider}; "
            f"{worst.name}: probabilities differ by {worst.max_probability_difference:.3g} (at most "
            f"{record.max_probability_difference:.3g}), {worst.changed_pixels:.2%} of a mask's pixels "
            f"(at most {record.max_changed_pixels:.2%}). Do not use this bundle; export it again."
        )
    return Verification(opened.sha256, files, predictor.runtime, predictor.provider, tuple(results))


def compare(answer: Segmentation, case: GoldenCase, record: GoldenRecord) -> GoldenResult:
    """Measure an answer against a golden case.

    Raises
    ------
    BundleError
        When the case has another number of classes or another size.
    """
    if answer.masks.shape != case.masks.shape:
        raise BundleError(
            f"golden case {record.name} must have masks of {answer.masks.shape}, not {case.masks.shape}."
        )
    difference = float(np.abs(answer.probability_maps - case.probability_maps).max())
    changed = float((answer.masks != case.masks).mean(axis=(1, 2)).max())
    passed = difference <= record.max_probability_difference and changed <= record.max_changed_pixels
    return GoldenResult(record.name, difference, changed, passed)
