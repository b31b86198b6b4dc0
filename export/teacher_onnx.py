"""A teacher as two ONNX graphs: the image encoder, and the decoder with the prompt encoder inside.

The decoder takes N prompt sets of M images in one call and is told for each set whether to choose the best
of three masks, so that it equals PyTorch for every combination of prompts; it gives low-resolution logits and
knows no image size. What goes in and out is written down in docs/bundle.md. Knows no bundle; that the graphs
compute what the teacher computes is for `teacher_parity` to say.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from samdistill.errors import UsageError
from samdistill.export.onnx import MAX_BYTES, OPSET, cleaned, writing
from samdistill.teacher import Teacher
from samdistill.teacher.decoder import PromptBatch, decode_one, encode_prompts

ENCODER_INPUTS, ENCODER_OUTPUTS = ("pixels", "input_size"), ("embeddings",)
DECODER_INPUTS = ("embeddings", "image_index", *PromptBatch._fields, "multimask")
DECODER_OUTPUTS = ("low_res_logits", "predicted_iou")


@dataclass(frozen=True)
class Graph:
    """An exported network.

    Attributes
    ----------
    content
        The ONNX file.
    data
        Its weights, where they do not fit into it; the graph names them `<name>.onnx.data`.
    parameters
        Number of trained values.
    inputs, outputs
        Names.
    """

    content: bytes
    data: bytes | None
    parameters: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class SamEncoder(nn.Module):
    """Resized uint8 pixels in a square to embeddings: SAM's normalisation and padding, then its encoder."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        sam: Any = teacher.model
        self.net = sam.image_encoder
        self.side = teacher.input_side
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", sam.pixel_mean[None])
        self.register_buffer("std", sam.pixel_std[None])

    def forward(self, pixels: torch.Tensor, input_size: torch.Tensor) -> torch.Tensor:
        """uint8 (M, 3, S, S) and int64 (M, 2) height, width of what is no padding, to (M, C, h, w)."""
        place = torch.arange(self.side)
        rows = place[None, :, None] < input_size[:, 0, None, None]
        columns = place[None, None, :] < input_size[:, 1, None, None]
        normalised = (pixels.float() - self.mean) / self.std
        embeddings: torch.Tensor = self.net(normalised * (rows & columns)[:, None])
        return embeddings


class MedSamEncoder(nn.Module):
    """Stretched uint8 pixels to embeddings: each image's values from least to greatest become 0 to 1."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.net = teacher.model.image_encoder

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (M, 3, S, S) to (M, C, h, w)."""
        values = pixels.float()
        low, high = values.amin(dim=(1, 2, 3), keepdim=True), values.amax(dim=(1, 2, 3), keepdim=True)
        embeddings: torch.Tensor = self.net((values - low) / (high - low).clamp(min=1e-8))
        return embeddings


class Decoder(nn.Module):
    """Embeddings and prompt sets to one mask and its predicted IoU a set."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        sam: Any = teacher.model
        self.prompt_encoder, self.mask_decoder = sam.prompt_encoder, sam.mask_decoder
        self.pe: torch.Tensor
        self.register_buffer("pe", sam.prompt_encoder.get_dense_pe())

    def forward(
        self,
        embeddings: torch.Tensor,
        image_index: torch.Tensor,
        points: torch.Tensor,
        point_labels: torch.Tensor,
        boxes: torch.Tensor,
        has_box: torch.Tensor,
        masks: torch.Tensor,
        has_mask: torch.Tensor,
        multimask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(M, C, h, w), (N,) which image each set asks about, the sets as in PromptBatch and (N,) the choice:
        False the single mask, True the best of three by predicted IoU. Gives (N, 4h, 4w) and (N,)."""
        batch = PromptBatch(points, point_labels, boxes, has_box, masks, has_mask)
        tokens, exists, dense = encode_prompts(self.prompt_encoder, batch)
        return decode_one(
            self.mask_decoder,
            embeddings,
            image_index,
            self.pe,
            tokens,
            exists,
            dense,
            multimask,
        )


def export_encoder(teacher: Teacher, *, max_bytes: int = MAX_BYTES) -> Graph:
    """Export the image encoder; `max_bytes`: above, its weights go into a file of their own.

    Raises
    ------
    UsageError
        When the teacher is not on the CPU.
    BundleError
        When it cannot be exported.
    """
    side = teacher.input_side
    pixels = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    dim = torch.export.Dim("images", max=1024)
    if teacher.preprocessing == "medsam":
        network: nn.Module = MedSamEncoder(teacher)
        example: tuple[torch.Tensor, ...] = (pixels,)
        inputs: tuple[str, ...] = ENCODER_INPUTS[:1]
    else:
        network = SamEncoder(teacher)
        example, inputs = (pixels, torch.tensor([[side, side - 1], [side - 1, side]])), ENCODER_INPUTS
    shapes = tuple({0: dim} for _ in inputs)
    return _export(teacher, network, example, "encoder", inputs, ENCODER_OUTPUTS, shapes, max_bytes)


def export_decoder(teacher: Teacher) -> Graph:
    """Export the decoder; errors as for `export_encoder`."""
    encoder: Any = teacher.model.prompt_encoder
    (height, width), channels = encoder.image_embedding_size, encoder.embed_dim
    images, sets, slots = 2, 3, 4
    example = (
        torch.zeros(images, channels, height, width),
        torch.zeros(sets, dtype=torch.int64),
        torch.zeros(sets, slots, 2),
        torch.zeros(sets, slots, dtype=torch.int64),
        torch.zeros(sets, 4),
        torch.zeros(sets, dtype=torch.bool),
        torch.zeros(sets, 1, *encoder.mask_input_size),
        torch.zeros(sets, dtype=torch.bool),
        torch.zeros(sets, dtype=torch.bool),
    )
    dims = {name: torch.export.Dim(name, max=4096) for name in ("images", "sets", "slots")}
    shapes: tuple[dict[int, Any], ...] = (
        {0: dims["images"]},
        {0: dims["sets"]},
        *({0: dims["sets"], 1: dims["slots"]} for _ in range(2)),
        *({0: dims["sets"]} for _ in range(5)),
    )
    return _export(
        teacher, Decoder(teacher), example, "decoder", DECODER_INPUTS, DECODER_OUTPUTS, shapes, MAX_BYTES
    )


@writing("the teacher")
def _export(
    teacher: Teacher,
    network: nn.Module,
    example: tuple[torch.Tensor, ...],
    name: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    shapes: tuple[dict[int, Any], ...],
    max_bytes: int,
) -> Graph:
    if teacher.device.type != "cpu":
        raise UsageError(f"the teacher must be on the cpu to be exported, not on {teacher.device}.")
    network = network.eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecations, nothing a user can change
        program = torch.onnx.export(
            network,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    parameters = sum(parameter.numel() for parameter in network.parameters())
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if size < max_bytes:
        return Graph(cleaned(program.model_proto), None, parameters, inputs, outputs)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"{name}.onnx")
        program.save(file, external_data=True)
        graph = onnx.load(file, load_external_data=False)
        return Graph(
            cleaned(graph, slim=False), Path(f"{file}.data").read_bytes(), parameters, inputs, outputs
        )
