"""From one file's images and their segmentations to its outputs on disk and its record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samdistill import quality, routing
from samdistill.arrays import Image, Masks
from samdistill.components import label
from samdistill.errors import InputRejected
from samdistill.inference.outputs import LABELS, SEGMENTS, Options, Outputs
from samdistill.io.contours import collection, feature
from samdistill.io.files import write_bytes
from samdistill.io.images import mask_bytes, png_bytes
from samdistill.io.measurements import measure
from samdistill.io.stack import Stack
from samdistill.manifest import Manifest
from samdistill.predictor import Pixels, Predictor, Segmentation
from samdistill.prompts import Prompts
from samdistill.quality import Quality
from samdistill.refined import Refined, told
from samdistill.routing import Route

MAX_MASK_BYTES = 1 << 30
MAX_MAP_BYTES = 1 << 31
_UINT16 = 65535


class Case:
    """Collects the answers for the images of one file, then writes its outputs.

    Parameters
    ----------
    stack
        The opened file.
    input_sha256
        Of the file.
    outputs, options
        What goes where.
    predictor
        What answers.

    Raises
    ------
    InputRejected
        When the answers would be too large, or several images are wanted as one PNG.
    """

    def __init__(
        self, stack: Stack, input_sha256: str, outputs: Outputs, options: Options, predictor: Predictor
    ) -> None:
        self.stack, self._outputs, self._options, self._predictor = stack, outputs, options, predictor
        self._input_sha256 = input_sha256
        shape = (len(stack), len(predictor.class_names), *stack.size)
        if int(np.prod(shape, dtype=np.int64)) > MAX_MASK_BYTES:
            raise InputRejected(f"{stack.path} must need at most {MAX_MASK_BYTES} mask pixels. Cut it up.")
        if options.png and len(stack) > 1:
            raise InputRejected(f"{stack.path} must hold one image to be written as PNG, not {len(stack)}.")
        self._masks = np.zeros(shape, np.bool_)
        self._maps = None
        if options.probabilities:
            if 4 * int(np.prod(shape, dtype=np.int64)) > MAX_MAP_BYTES:
                raise InputRejected(f"{stack.path} is too large for its probability maps. Cut it up.")
            self._maps = np.zeros(shape, np.float32)
        self._peaks = np.zeros(shape[1], np.float32)
        self._measurements: list[dict[str, Any]] = []
        self._features: list[dict[str, Any]] = []
        self._shown: tuple[int, Image, Masks, Sequence[Sequence[Prompts]]] | None = None
        self._refined: list[Refined] = []
        self._routes: list[Route] = []
        self._qualities: list[Quality] = []

    @property
    def held_bytes(self) -> int:
        """What it holds until it is written, roughly."""
        return self._masks.nbytes + (0 if self._maps is None else self._maps.nbytes)

    def add(self, index: int, pixels: Pixels, answer: Segmentation) -> None:
        """Take the answer for image `index`, whose raw pixels are given."""
        self._masks[index] = answer.masks
        if self._maps is not None:
            calibrated = answer.calibrated_maps
            self._maps[index] = answer.probability_maps if calibrated is None else calibrated
        self._peaks = np.maximum(self._peaks, answer.probability_maps.max(axis=(1, 2)))
        if answer.refined is not None:
            self._refined.append(answer.refined.light())
        if answer.route is not None:
            self._routes.append(answer.route)
        self._qualities.append(answer.quality)
        if self._options.overlay:
            area = int(np.count_nonzero(answer.masks))
            if self._shown is None or area > self._shown[0]:
                image = self._predictor.manifest.intensity.apply(pixels)
                asked = () if answer.refined is None else answer.refined.prompts
                self._shown = area, image, answer.masks, asked
        several = index if len(self.stack) > 1 else None
        for class_id, (name, mask) in enumerate(zip(answer.class_names, answer.masks, strict=True), 1):
            if self._options.measurements:
                measured = asdict(measure(mask, self.stack.spacing_mm))
                self._measurements.append({"image": index, "class": name, **measured})
            if self._options.contours:
                self._features += _features(mask, name, class_id, several)

    def write(self, out: Path, settings: dict[str, str]) -> dict[str, Any]:
        """Write every wanted output; each appears whole or not at all.

        Parameters
        ----------
        out
            The output folder.
        settings
            What a DICOM Segmentation says that it was made with, name -> value.

        Returns
        -------
        dict
            What the file's `Record` says of it.
        """
        written: dict[str, str] = {}

        def put(file: Path, content: bytes) -> str:
            try:
                write_bytes(file, content, settle_folder=False)
            except FileNotFoundError:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(file, content, settle_folder=False)
            name = file.relative_to(out).as_posix()
            written[name] = hashlib.sha256(content).hexdigest()
            return name

        outputs = self._outputs
        masks = {
            key: put(file, self._mask_content(key, file, settings)) for key, file in outputs.masks.items()
        }
        maps = overlay = contours = None
        if self._maps is not None:
            maps = {
                key: put(file, self._map_content(key, settings))
                for key, file in outputs.probabilities.items()
            }
        if self._shown is not None:
            overlay = put(outputs.overlay, self._overlay_content())
        if self._options.contours:
            found = collection(self._features, self.stack.size, len(self.stack))
            contours = put(outputs.contours, json.dumps(found).encode())
        areas = [np.count_nonzero(self._masks[:, channel]) for channel in range(self._masks.shape[1])]
        return {
            "image_size": self.stack.size,
            "images": len(self.stack) if self.stack.format != "picture" else None,
            "spacing_mm": self.stack.spacing_mm,
            "masks": masks,
            "probabilities": maps,
            "overlay": overlay,
            "contours": contours,
            "classes": {
                name: {"area_px": int(area), "max_probability": round(float(peak), 6)}
                for name, area, peak in zip(self._predictor.class_names, areas, self._peaks, strict=True)
            },
            "refined": told(self._refined, self._predictor.class_names) if self._refined else None,
            "routed": routing.told(self._routes) if self._routes else None,
            "quality": quality.told(self._qualities),
            "calibrated": None if maps is None else self._predictor.manifest.calibration is not None,
            "measurements": self._measurements if self._options.measurements else None,
            "files": written,
            "warnings": ["burned_in_annotation"] if getattr(self.stack, "burned_in", False) else None,
        }

    def _mask_content(self, key: str, file: Path, settings: dict[str, str]) -> bytes:
        if key == SEGMENTS:
            return self._segments(self._masks, settings)
        if key == LABELS:
            layer: npt.NDArray[Any] = self._masks[:, 0].view(np.uint8)
            for channel in range(1, self._masks.shape[1]):  # they do not overlap
                layer = layer + self._masks[:, channel] * np.uint8(channel + 1)
        else:
            layer = self._masks[:, self._predictor.class_names.index(key)]
        if file.suffix == ".png":
            return mask_bytes(layer[0])
        return self._nifti(layer.astype(np.uint8))

    def _map_content(self, key: str, settings: dict[str, str]) -> bytes:
        assert self._maps is not None
        if key == SEGMENTS:
            return self._segments(self._maps, settings)
        layer = self._maps[:, self._predictor.class_names.index(key)]
        if self.stack.format == "picture":
            return png_bytes(np.rint(layer[0] * _UINT16).astype(np.uint16))
        return self._nifti(layer)

    def _nifti(self, values: Any) -> bytes:
        from samdistill.io.nifti import NiftiStack, nifti_bytes

        assert isinstance(self.stack, NiftiStack)
        described = f"samdistill, bundle {self._predictor.bundle_sha256[:32]}"
        return nifti_bytes(self.stack, values, description=described)

    def _segments(self, values: Any, settings: dict[str, str]) -> bytes:
        from samdistill.io.dicom import DicomStack
        from samdistill.io.dicom_seg import Provenance, SegmentInfo, segmentation_bytes

        assert isinstance(self.stack, DicomStack)
        manifest = self._predictor.manifest
        segments = [SegmentInfo(one.name, _rgb(one.colour)) for one in manifest.classes]
        provenance = Provenance(manifest.name, self._predictor.bundle_sha256, self._input_sha256, settings)
        return segmentation_bytes(self.stack, values, segments, provenance)

    def _overlay_content(self) -> bytes:
        assert self._shown is not None
        _, image, masks, prompts = self._shown
        return draw(image, masks, prompts, self._predictor.manifest)


def draw(image: Image, masks: Masks, prompts: Sequence[Sequence[Prompts]], manifest: Manifest) -> bytes:
    """Encode an overlay as PNG, in the classes' colours."""
    from samdistill.report.overlay import draw_overlay

    colours = [_rgb(one.colour) for one in manifest.classes]
    return png_bytes(draw_overlay(image, masks, colours, prompts=prompts))


def _features(mask: Any, name: str, class_id: int, image: int | None) -> list[dict[str, Any]]:
    """A GeoJSON feature for each component; 4-connected, so that no ring meets itself."""
    from samdistill.report.contours import trace

    found = label(mask, connectivity=4)
    features = []
    for number in range(len(found)):
        x0, y0, x1, y1 = (int(n) for n in found.boxes[number])
        rings = trace(found.labels[y0:y1, x0:x1] == number + 1)
        moved = [[(x + x0, y + y0) for x, y in ring] for ring in rings]
        area = int(found.area_px[number])
        features.append(feature(moved, name=name, class_id=class_id, area_px=area, image=image))
    return features


def _rgb(colour: Sequence[int]) -> tuple[int, int, int]:
    red, green, blue = colour
    return red, green, blue
