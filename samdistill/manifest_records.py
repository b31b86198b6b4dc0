"""What a manifest is made of: frozen records, each checked when it is made.

Knows no file and no text; `manifest` puts the records together and reads them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from samdistill.geometry import MAX_ASPECT

MANIFEST = "manifest.json"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOT_IN_NAMES = r"\x00-\x1f\x7f/\\:*?\"<>|\ud800-\udfff"
_CLASS_NAME = re.compile(f"[^{_NOT_IN_NAMES}.][^{_NOT_IN_NAMES}]{{0,63}}")
CLASS_NAMES = '1 to 64 characters without / \\ : * ? " < > |, no full stop first, no space first or last'


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def is_class_name(name: str) -> bool:
    """Whether a class may be called so: its masks may lie in a folder of this name, on any system."""
    return bool(_CLASS_NAME.fullmatch(name)) and name == name.strip()


def check_path(path: str, name: str) -> None:
    """A file of a bundle lies in the bundle: relative, forward slashes, no way up."""
    parts = PurePosixPath(path).parts
    inside = bool(parts) and path == "/".join(parts) and not path.startswith("/") and ".." not in parts
    require(
        inside and "\\" not in path and "\0" not in path and path != MANIFEST,
        f"{name} must be a relative path inside the bundle, not {path!r}.",
    )


@dataclass(frozen=True)
class FileRecord:
    """One file of the bundle; every file but the manifest has one.

    Attributes
    ----------
    path
        Relative to the bundle, forward slashes.
    sha256
        Of its bytes, 64 lower-case hexadecimal digits.
    bytes
        Its length.
    """

    path: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        check_path(self.path, "path")
        require(bool(_SHA256.fullmatch(self.sha256)), f"sha256 must be 64 hex digits, not {self.sha256!r}.")
        require(self.bytes >= 0, f"bytes must be at least 0, not {self.bytes}.")


@dataclass(frozen=True)
class ClassInfo:
    """One foreground class; its place in the list is its channel, class_id is the channel + 1.

    Attributes
    ----------
    name
        Also the folder its masks are written to where classes overlap, so it must do as one: 1 to 64
        characters, none of / \\ : * ? " < > |, no full stop first.
    colour
        RGB, 0..255 each, for overlays and palettes.
    threshold
        The mask is where the probability map lies strictly above it; in (0, 1).
    """

    name: str
    colour: tuple[int, ...]
    threshold: float = 0.5

    def __post_init__(self) -> None:
        require(
            is_class_name(self.name),
            f"name must do as a folder's name, {CLASS_NAMES}, not {self.name!r}.",
        )
        require(
            len(self.colour) == 3 and all(0 <= part <= 255 for part in self.colour),
            f"colour must be three numbers 0..255, not {list(self.colour)}.",
        )
        require(0 < self.threshold < 1, f"threshold must lie between 0 and 1, not {self.threshold}.")


@dataclass(frozen=True)
class InputContract:
    """How an image, made uint8 by the intensity rule, becomes the student's input; `geometry.ModelFrame`.

    Attributes
    ----------
    size
        Length of the shortest side in the model frame, pixels.
    multiple
        Height and width are padded right and below to multiples of this.
    max_aspect
        Longest over shortest side of the model frame.
    resize, padding, layout, dtype, channels
        The one way this schema knows.
    """

    size: int
    multiple: int = 32
    max_aspect: float = MAX_ASPECT
    resize: Literal["pillow-bilinear"] = "pillow-bilinear"
    padding: Literal["edge"] = "edge"
    layout: Literal["NCHW"] = "NCHW"
    dtype: Literal["uint8"] = "uint8"
    channels: Literal["RGB"] = "RGB"

    def __post_init__(self) -> None:
        require(1 <= self.size <= 8192, f"size must be 1..8192 px, not {self.size}.")
        require(self.multiple == 32, f"multiple must be 32, not {self.multiple}.")
        require(self.max_aspect == MAX_ASPECT, f"max_aspect must be {MAX_ASPECT}, not {self.max_aspect}.")


@dataclass(frozen=True)
class Normalisation:
    """What the graph itself does to pixels first: (pixel - mean) / std, in units of 0..255. A record only.

    Attributes
    ----------
    where
        "graph": whoever runs the model must not normalise again.
    mean, std
        One value a channel, RGB.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    where: Literal["graph"] = "graph"

    def __post_init__(self) -> None:
        require(
            len(self.mean) == len(self.std) == 3 and min(self.std) > 0,
            f"mean and std must be three numbers each, std above 0, not {self.mean} and {self.std}.",
        )


Part = Literal["student", "encoder", "decoder"]
Precision = Literal["fp32", "bf16", "fp16", "mixed", "int8"]


@dataclass(frozen=True)
class ModelRecord:
    """One network of the bundle: its graph in fp32, of which the engines are made.

    Attributes
    ----------
    file
        Its path in the bundle.
    opset
        ONNX operator set.
    parameters
        Number of trained values.
    inputs, outputs
        Names of its tensors, in order; docs/bundle.md has their shapes.
    data
        Path of its weights, where they do not fit into the graph's own file.
    """

    file: str
    opset: int
    parameters: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    data: str | None = None
    format: Literal["onnx"] = "onnx"

    def __post_init__(self) -> None:
        for path in self.paths:
            check_path(path, "file")
        require(13 <= self.opset <= 30, f"opset must be 13..30, not {self.opset}.")
        require(self.parameters > 0, f"parameters must be above 0, not {self.parameters}.")
        for name in ("inputs", "outputs"):
            names = getattr(self, name)
            require(bool(names) and all(names), f"{name} must be names, not empty.")

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file it consists of."""
        return (self.file,) if self.data is None else (self.file, self.data)


@dataclass(frozen=True)
class Models:
    """The networks, by their part in the bundle; encoder and decoder are the teacher's, both or none."""

    student: ModelRecord
    encoder: ModelRecord | None = None
    decoder: ModelRecord | None = None

    def __post_init__(self) -> None:
        both = (self.encoder is None) == (self.decoder is None)
        require(both, "encoder and decoder must be given together: a teacher is both.")

    def of(self, part: Part) -> ModelRecord:
        """The network of a part.

        Raises
        ------
        KeyError
            When the bundle has none.
        """
        found: ModelRecord | None = getattr(self, part)
        if found is None:
            raise KeyError(part)
        return found


@dataclass(frozen=True)
class TeacherRecord:
    """What is to be known of the teacher whose encoder and decoder the bundle holds.

    Attributes
    ----------
    name
        "tiny", "sam_vit_b", ...; without a path.
    weights_sha256
        Names the weights it was made of.
    preprocessing
        "sam" (longest side, padded) or "medsam" (stretched square, boxes only); see `TeacherFrame`.
    side
        Of the encoder's square input, pixels.
    embedding
        (C, h, w) of an embedding.
    mask_size
        (height, width) of the decoder's low-resolution frame.
    mask_threshold
        A mask is where what `TeacherFrame.upscale` gives lies strictly above this.
    licence
        Of the teacher's weights.
    """

    name: str
    weights_sha256: str
    preprocessing: Literal["sam", "medsam"]
    side: int
    embedding: tuple[int, ...]
    mask_size: tuple[int, ...]
    mask_threshold: float
    licence: str

    def __post_init__(self) -> None:
        require(bool(self.name), "name must be a name, not empty.")
        sha256 = self.weights_sha256
        require(bool(_SHA256.fullmatch(sha256)), f"weights_sha256 must be 64 hex digits, not {sha256!r}.")
        require(1 <= self.side <= 8192, f"side must be 1..8192 px, not {self.side}.")
        for key, length in (("embedding", 3), ("mask_size", 2)):
            values = getattr(self, key)
            require(
                len(values) == length and all(1 <= value <= 8192 for value in values),
                f"{key} must be {length} numbers 1..8192, not {list(values)}.",
            )


@dataclass(frozen=True)
class EngineRecord:
    """One way of running a network that has passed the parity gate; or, for a GPU, waits to be proved there.

    Attributes
    ----------
    model
        Which network.
    runtime
        Key of runtime.RUNTIMES.
    device
        Kind of device it was proved on.
    precision
        Of its arithmetic.
    file, data
        The graph that the runtime opens, or that its plan is made of; several engines may share a file.
    parity
        What the gate measured; empty where there was no GPU to measure on.
    verified
        False where masks mean nothing yet (random weights) and only numbers were compared, and where an
        engine was built for a GPU without one.
    latency_ms
        Of one call on the machine that exported, for choosing the fastest; None: not measured.
    max_probability_difference, max_changed_pixels
        What its golden cases may differ by, where that is more than the cases themselves allow.
    plan, plan_gpus, plan_version
        Path of what TensorRT-RTX made of the graph, for which generations of GPUs, and in which version; None
        where each machine makes its own.
    """

    model: Part
    runtime: Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
    device: Literal["cpu", "cuda"]
    precision: Precision
    file: str
    parity: dict[str, Any]
    data: str | None = None
    verified: bool = True
    latency_ms: float | None = None
    max_probability_difference: float | None = None
    max_changed_pixels: float | None = None
    plan: str | None = None
    plan_gpus: tuple[Literal["turing", "ampere", "ada", "blackwell"], ...] = ()
    plan_version: str | None = None

    def __post_init__(self) -> None:
        for path in self.paths:
            check_path(path, "file")
        complete = (self.plan is None, not self.plan_gpus, self.plan_version is None)
        require(len(set(complete)) == 1, "plan, plan_gpus and plan_version must be given together.")
        planned = self.runtime == "tensorrt-rtx"
        require(self.plan is None or planned, f"plan must be of tensorrt-rtx, not {self.runtime}.")
        latency = self.latency_ms
        require(latency is None or latency > 0, f"latency_ms must be above 0, not {latency}.")
        for key in ("max_probability_difference", "max_changed_pixels"):
            value = getattr(self, key)
            require(value is None or 0 < value <= 1, f"{key} must lie between 0 and 1, not {value}.")

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file it consists of."""
        return tuple(path for path in (self.file, self.data, self.plan) if path is not None)


@dataclass(frozen=True)
class CleaningRule:
    """What is done to the masks after the threshold; see `components.clean`.

    Attributes
    ----------
    keep
        Which connected components of each class stay.
    min_area_px
        Smaller components are dropped first; pixels of the image frame.
    """

    keep: Literal["likeliest", "largest", "all"] = "all"
    min_area_px: int = 0

    def __post_init__(self) -> None:
        require(self.min_area_px >= 0, f"min_area_px must be at least 0, not {self.min_area_px}.")


@dataclass(frozen=True)
class GoldenRecord:
    """A picture, made up unless `origin` says otherwise, and PyTorch's answer for it.

    Attributes
    ----------
    name
        Short, for messages.
    file
        Its npz in the bundle; see docs/bundle.md.
    origin
        How the picture was made.
    max_probability_difference
        How far any pixel of a probability map may be from the recorded one.
    max_changed_pixels
        Which share of an image's pixels may differ in any one mask.
    part
        "student": an image with its probability maps; "teacher": an image with prompt sets, whose probability
        is the sigmoid of the decoder's low-resolution logits.
    """

    name: str
    file: str
    origin: str
    max_probability_difference: float
    max_changed_pixels: float
    part: Literal["student", "teacher"] = "student"

    def __post_init__(self) -> None:
        require(self.name.isprintable() and self.name != "", f"name must be printable, not {self.name!r}.")
        check_path(self.file, "file")
        for key in ("max_probability_difference", "max_changed_pixels"):
            value = getattr(self, key)
            require(0 < value <= 1, f"{key} must lie between 0 and 1, not {value}.")
