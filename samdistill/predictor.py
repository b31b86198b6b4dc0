"""Masks from images with a bundle: numpy, one runtime, no torch.

Everything between the raw pixels and the final masks comes out of the manifest. Knows no file but the
bundle's, and no output format.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Image, describe
from samdistill.bundle import Bundle
from samdistill.bundled_teacher import BundledTeacher
from samdistill.engines import OpenedPart, open_part
from samdistill.errors import BundleError, UsageError
from samdistill.geometry import ModelFrame
from samdistill.golden import GoldenCase, GoldenResult, compare
from samdistill.judging import Judge, Look, look, share_of
from samdistill.manifest import GoldenRecord, Manifest
from samdistill.proof import prove
from samdistill.refined import refine_images
from samdistill.routing import Budget, check_wishes, least_gain
from samdistill.runtime import Engine
from samdistill.segmentation import Mode, Segmentation, masks_of, parse_mode

__all__ = ["BATCH_PIXELS", "Mode", "Pixels", "Predictor", "Segmentation", "masks_of", "parse_mode"]

BATCH_PIXELS = 1 << 22  # of the images that are held and predicted together, the last one not counted
TIMED_SIZE = (512, 512)  # of the picture with one finding that a budget in seconds is timed on
Pixels = npt.NDArray[Any]  # (H, W) or (H, W, 3) of any depth, as io.read_image gives them


class Predictor:
    """An opened bundle; safe to use from several threads, and picklable.

    A pickled predictor is its bundle's place and hash: unpickling opens the bundle again, on that machine's
    device, and refuses one that has changed. Make one with `Predictor.load`.
    """

    def __init__(
        self,
        bundle: Bundle,
        student: OpenedPart,
        *,
        threads: int | None,
        device: str,
        runtime: str = "auto",
        precision: str | None = None,
        teacher: BundledTeacher | None = None,
    ) -> None:
        self._bundle = bundle
        self._runtime, self._precision = runtime, precision  # as the teacher is opened, too
        self._teacher = teacher
        self._opening = Lock()
        self._least: dict[tuple[Budget | None, bool], float] = {}
        self._timing = Lock()
        self._student = student
        self._engine = student.engine
        self._threads = threads
        self._device = device
        _check_student(bundle.manifest, student.engine)

    @classmethod
    def load(
        cls,
        bundle: Path | str,
        device: str = "cpu",
        runtime: str = "auto",
        *,
        threads: int | None = None,
        precision: str | None = None,
        expect_sha256: str | None = None,
    ) -> Predictor:
        """Open a bundle on a device.

        Parameters
        ----------
        bundle
            The bundle's folder.
        device
            "cpu", "cuda" or "cuda:N"; never another one in its place.
        runtime
            "onnxruntime", ..., or "auto" for the fastest proved one whose library is installed; `engine` says
            which it is.
        threads
            CPU threads within one call; None lets the runtime choose.
        precision
            "fp32", ..., or None for the fastest; the teacher's networks too, where the bundle has them in it,
            as it always has in fp32.
        expect_sha256
            The bundle's own hash, where it is pinned from outside: SHA-256 of its manifest.json.

        Raises
        ------
        BundleError
            When a file of the bundle is missing, changed, or not what the manifest says.
        DeviceUnavailable
            When the runtime or the device cannot be had.
        UsageError
            For an unknown device, or a runtime or precision the bundle does not have.
        """
        opened = Bundle.open(bundle, expect_sha256=expect_sha256)
        student = open_part(
            opened, "student", device=device, runtime=runtime, precision=precision, threads=threads
        )
        predictor = cls(opened, student, threads=threads, device=device, runtime=runtime, precision=precision)
        prove(opened, student, predictor.golden_result)
        return predictor

    def golden_result(self, record: GoldenRecord) -> GoldenResult:
        """Compute one of the student's golden cases again; errors as for `predict`."""
        expected = GoldenCase.from_npz(self._bundle.read(record.file), record.file)
        answer = self.predict(expected.pixels)
        return compare(answer.masks, answer.probability_maps, expected, record)

    def __reduce__(self) -> tuple[Any, ...]:
        bundle, engine = self._bundle, self._student.record
        return _reopen, (
            str(bundle.root),
            self._device,
            engine.runtime,
            engine.precision,
            self._threads,
            bundle.sha256,
            self._runtime,
            self._precision,
        )

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def bundle_sha256(self) -> str:
        """The hash that names the whole bundle; what `expect_sha256` takes."""
        return self._bundle.sha256

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in channel order."""
        return self._bundle.manifest.class_names

    @property
    def runtime(self) -> str:
        """The runtime in use."""
        return self._engine.runtime

    @property
    def engine(self) -> str:
        """The engine in use: runtime, precision and provider."""
        return str(self._student)

    @property
    def provider(self) -> str:
        """What really computes, as the runtime names it."""
        return self._engine.provider

    def predict(
        self,
        image: Pixels,
        mode: Mode = "fast",
        *,
        budget: Budget | None = None,
        abstain: float | None = None,
        stability: bool = False,
    ) -> Segmentation:
        """Segment one image.

        Parameters
        ----------
        image
            (H, W) grey or (H, W, 3) RGB, as `io.read_image` gives it; the bundle's intensity rule makes it
            uint8, so deeper pixels are welcome where that rule is not "identity".
        mode
            "fast": the student alone. "refine": the bundle's teacher, prompted by the student; see
            docs/refine.md. "auto": the teacher where the bundle's rule expects it to help.
        budget
            In mode "auto": of images like the validation images the teacher is asked about no more than it
            allows; of others perhaps, since each is decided on by itself.
        abstain
            An image with a lower score is flagged "reject", whatever the bundle's own threshold.
        stability
            Where the teacher is asked, ask once more with prompts moved a little.

        Returns
        -------
        Segmentation
            In the image's own frame.

        Raises
        ------
        TypeError, ValueError
            When the image is none, or its depth does not go with the bundle's intensity rule.
        UsageError
            For a mode the bundle cannot do, and for a budget or stability that the mode has no use for.
        BundleError
            When the network fails or answers with NaN or infinity.
        DeviceUnavailable
            When the GPU is lost.
        """
        return self.predict_batch(
            [image], mode, batch_size=1, budget=budget, abstain=abstain, stability=stability
        )[0]

    def predict_batch(
        self,
        images: Sequence[Pixels],
        mode: Mode = "fast",
        *,
        batch_size: int = 8,
        budget: Budget | None = None,
        abstain: float | None = None,
        stability: bool = False,
    ) -> list[Segmentation]:
        """Segment several images; those of one padded size go through the network together.

        Parameters
        ----------
        images
            As in `predict`; sizes may differ.
        batch_size
            At most this many images in one call of the network; the teacher is asked about those of them that
            it is to be asked about together.
        budget, abstain, stability
            As in `predict`.

        Returns
        -------
        list
            One Segmentation an image, in their order.
        """
        if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[2] == 3:
            raise TypeError(
                f"images must be a list of images, not one, {describe(images)}. Give it to predict."
            )
        check_wishes(mode, budget, stability=stability)
        self.require_mode(mode)
        judge = Judge(self.manifest, abstain)
        least = self.least_gain(budget, stability=stability) if mode == "auto" else 0.0
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
        manifest = self.manifest
        contract = manifest.input
        prepared = [self._uint8(image, i if len(images) > 1 else None) for i, image in enumerate(images)]
        frames = [ModelFrame.of(i.shape[:2], contract.size, contract.multiple) for i in prepared]
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, frame in enumerate(frames):
            alike[frame.padded].append(index)
        done: dict[int, Segmentation] = {}
        for members in alike.values():
            for start in range(0, len(members), batch_size):
                chunk = members[start : start + batch_size]
                pixels = [frames[i].pixels(prepared[i]) for i in chunk]
                seen: dict[int, Look] = {}
                for i, own, logits in zip(chunk, pixels, self._logits(np.stack(pixels)), strict=True):
                    done[i] = self._student_answer(frames[i], logits, mode)
                    if manifest.calibration is not None:
                        temperatures = manifest.calibration.temperatures
                        seen[i] = look(frames[i], own, logits, done[i].masks, temperatures)
                if mode == "auto":
                    routes = {i: judge.route(seen[i], done[i].masks, least=least) for i in chunk}
                    done.update((i, replace(done[i], route=route)) for i, route in routes.items())
                asked = [i for i in chunk if mode == "refine" or ((r := done[i].route) and r.refine)]
                done.update(self._refine({i: prepared[i] for i in asked}, done, stability=stability))
                for i in chunk:
                    judged = judge.quality(seen.get(i), done[i].masks, done[i].refined)
                    done[i] = replace(done[i], quality=judged)
        return [done[i] for i in range(len(images))]

    def _student_answer(self, frame: ModelFrame, logits: npt.NDArray[np.float32], mode: Mode) -> Segmentation:
        """What the student says of an image; (C, height, width) logits, padded."""
        manifest = self.manifest
        maps = frame.probability_maps(logits)
        masks = masks_of(
            maps, thresholds=manifest.thresholds, multi_label=manifest.multi_label, cleaning=manifest.cleaning
        )
        known = manifest.calibration
        temperatures = None if known is None else known.temperatures
        return Segmentation(
            masks, maps, self.class_names, manifest.multi_label, mode, temperatures=temperatures
        )

    def _refine(
        self, images: Mapping[int, Image], done: Mapping[int, Segmentation], *, stability: bool
    ) -> dict[int, Segmentation]:
        """The student's answers to some images, after the teacher was asked about all of them together."""
        if not images:
            return {}
        # Mode "refine" takes what the teacher says; "auto" may know better.
        routing = self.manifest.routing
        automatic = all(done[i].mode == "auto" for i in images)
        least = routing.least_predicted_iou if automatic and routing is not None else -math.inf
        found = refine_images(
            self.teacher(),
            self.manifest,
            list(images.values()),
            [done[i].probability_maps for i in images],
            [done[i].masks for i in images],
            least_predicted_iou=least,
            stability=stability,
        )
        answers = {}
        for i, (masks, refined) in zip(images, found, strict=True):
            route = done[i].route
            if route is not None and not any(refined.prompts):  # they leave out all that the student found
                route = replace(route, refine=False, why="empty")
            answers[i] = replace(done[i], masks=masks, refined=refined, route=route)
        return answers

    def least_gain(self, budget: Budget | None, *, stability: bool = False) -> float:
        """The expected gain above which mode "auto" asks the teacher; a budget in seconds is timed once.

        Parameters as of `predict`: asking for stability takes time, too.

        Raises
        ------
        UsageError
            When the bundle has no routing rule.
        """
        self.require_mode("auto")
        rule = self.manifest.routing
        assert rule is not None
        with self._timing:
            key = budget, stability
            if key not in self._least:
                share = None if budget is None or not rule.refine else self._share(budget, stability)
                self._least[key] = least_gain(rule, share)
            return self._least[key]

    def _share(self, budget: Budget, stability: bool) -> float:
        """The share of images a budget allows, timed on a grey picture where it is in seconds."""
        height, width = TIMED_SIZE
        grey = np.full((height, width, 3), 128, np.uint8)
        maps = np.zeros((len(self.class_names), height, width), np.float32)
        maps[0, height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = 1  # as if this had been found
        found = Segmentation(maps > 0, maps, self.class_names, self.manifest.multi_label, "auto")
        return share_of(
            budget,
            lambda: self.predict(grey),
            lambda: self._refine({0: grey}, {0: found}, stability=stability),
        )

    def teacher(self) -> BundledTeacher:
        """The bundle's teacher; opened when it is first asked for, then kept.

        Raises
        ------
        UsageError
            When the bundle has none.
        BundleError, DeviceUnavailable
            As for `load`.
        """
        with self._opening:
            if self._teacher is None:
                self._teacher = BundledTeacher.load(
                    self._bundle,
                    self._device,
                    self._runtime,
                    threads=self._threads,
                    precision=self._precision,
                )
            return self._teacher

    def student_logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Run the student alone, for measurements: uint8 (N, 3, H, W) in, float32 (N, C, H, W) out."""
        return self._logits(pixels)

    def _uint8(self, image: Pixels, index: int | None) -> Image:
        name = "image" if index is None else f"images[{index}]"
        if not isinstance(image, np.ndarray):
            raise TypeError(f"{name} must be an array (H, W) or (H, W, 3), not {describe(image)}.")
        try:
            return self.manifest.intensity.apply(image)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def require_mode(self, mode: str) -> None:
        """Make sure that the bundle can do a mode; opens the teacher where it needs one.

        Raises
        ------
        UsageError
            When it cannot, or there is no such mode.
        BundleError, DeviceUnavailable
            When the teacher cannot be opened.
        """
        chosen = parse_mode(mode)
        if chosen != "fast" and self.manifest.teacher is None:
            raise UsageError(
                f"mode must be fast, not {mode}: this bundle has no teacher to refine with. "
                "Export the run again with --teacher."
            )
        routing = self.manifest.routing
        if chosen == "auto" and routing is None:
            raise UsageError(
                "mode must be fast or refine, not auto: this bundle has no routing rule; it was exported "
                "without labelled validation images."
            )
        if self.asks_teacher(chosen):
            self.teacher()

    def asks_teacher(self, mode: Mode) -> bool:
        """Whether the teacher may be asked in a mode: not in "fast", nor where the rule says never."""
        routing = self.manifest.routing
        return mode == "refine" or (mode == "auto" and routing is not None and routing.refine)

    def _logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        student = self.manifest.models.student
        logits: npt.NDArray[np.float32] = self._engine.run({student.inputs[0]: pixels})[student.outputs[0]]
        wanted = (len(pixels), len(self.class_names), *pixels.shape[2:])
        if logits.shape != wanted:
            raise BundleError(f"logits must have the shape {wanted}, not {logits.shape}.")
        if not np.isfinite(logits).all():
            raise BundleError(
                f"logits must be finite, not NaN or infinite in {np.count_nonzero(~np.isfinite(logits))} of "
                f"{logits.size} values. The network is broken or overflows; no mask is given."
            )
        return logits


def _check_student(manifest: Manifest, engine: Engine) -> None:
    """The network's tensors must be what the manifest promises."""
    record = manifest.models.student
    for kind, tensors, name, dtype in (
        ("input", engine.inputs, record.inputs[0], np.uint8),
        ("output", engine.outputs, record.outputs[0], np.float32),
    ):
        if list(tensors) != [name] or tensors[name].dtype != dtype or tensors[name].ndim != 4:
            raise BundleError(
                f"the student's {kind} must be {name}, {np.dtype(dtype)} of 4 dimensions, not "
                + ", ".join(f"{key}, {type_.dtype} of {type_.ndim}" for key, type_ in tensors.items())
                + "."
            )


def _reopen(
    root: str,
    device: str,
    runtime: str,
    precision: str,
    threads: int | None,
    sha256: str,
    asked_runtime: str,
    asked_precision: str | None,
) -> Predictor:
    """Open the very engine again; what was asked for is what the teacher is opened with."""
    predictor = Predictor.load(
        root, device, runtime, threads=threads, precision=precision, expect_sha256=sha256
    )
    predictor._runtime, predictor._precision = asked_runtime, asked_precision
    return predictor
