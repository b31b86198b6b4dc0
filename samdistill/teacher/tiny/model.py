"""The embedded teacher's network: SAM's prompt encoder and mask decoder behind a convolutional encoder.

Input 256 x 256, 56 x 56 tokens of width 96, low-resolution masks of 224 x 224. Two things differ from SAM:
the image encoder, and that a box without a mask is also shown to the decoder as a picture, the ellipse
inscribed in it, through SAM's own mask path. Knows neither training nor where the weights lie.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from samdistill.torchvision_cure import cure

cure()

from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer  # noqa: E402

SIZE = 256  # input, pixels
STRIDE = 8
# The encoder works on its input enlarged: what small objects lack is tokens, not detail.
ENLARGED = 1.75
PIXEL = STRIDE / (4 * ENLARGED)  # side of a low-resolution mask's pixel, in pixels of the input
WIDTH = 96
STAGES = ((24, 0), (48, 1), (96, 2), (160, 3), (192, 2))  # channels and blocks at strides 2, 4, 8, 16, 32


def conv(c_in: int, c_out: int, *, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, group norm (a statistic of this image alone), ReLU."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.GroupNorm(8, c_out), nn.ReLU()
    )


class Block(nn.Module):
    """Residual block of two 3 x 3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.GroupNorm(8, channels)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) to the same."""
        return functional.relu(x + self.second(self.first(x)))


class TinyEncoder(nn.Module):
    """Convolutional pyramid, joined top-down at stride 8; strides 2 and 4 enter with their pixels stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.img_size = SIZE
        stages, channels = [], 3
        for width, blocks in STAGES:
            down = conv(channels, width, stride=2)
            stages.append(nn.Sequential(down, *[Block(width) for _ in range(blocks)]))
            channels = width
        self.stages = nn.ModuleList(stages)
        widths = [width for width, _ in STAGES]
        self.fine = nn.Sequential(conv(widths[1], 32), nn.PixelUnshuffle(2), nn.Conv2d(128, WIDTH, 1))
        self.finest = nn.Sequential(conv(widths[0], 8), nn.PixelUnshuffle(4), nn.Conv2d(128, WIDTH, 1))
        self.lateral = nn.ModuleList(nn.Conv2d(width, WIDTH, 1) for width in widths[2:])
        self.merge = nn.ModuleList([Block(WIDTH), Block(WIDTH)])
        self.out = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 256, 256) normalised pixels to (N, 96, 56, 56) embeddings."""
        x = functional.interpolate(x, scale_factor=ENLARGED, mode="bilinear", align_corners=False)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        top = self.lateral[2](maps[4])
        for block, lateral, finer in (
            (self.merge[1], self.lateral[1], maps[3]),
            (self.merge[0], self.lateral[0], maps[2]),
        ):
            top = block(functional.interpolate(top, scale_factor=2.0, mode="nearest") + lateral(finer))
        embedding: torch.Tensor = self.out(top + self.fine(maps[1]) + self.finest(maps[0]))
        return embedding


class PriorPromptEncoder(PromptEncoder):  # type: ignore[misc]
    """SAM's prompt encoder that also draws a box as the ellipse inscribed in it."""

    def box_prior(self, boxes: torch.Tensor) -> torch.Tensor:
        """Logits of the inscribed ellipses: 0 on the ellipse, 4 at the centre, no less than -12.

        Parameters
        ----------
        boxes
            (N, 4) float32 xyxy pixel indices, encoder's input frame.

        Returns
        -------
        torch.Tensor
            (N, 1, h, w) float32 logits in the frame of mask prompts.
        """
        height, width = self.mask_input_size
        y = (torch.arange(height, device=boxes.device) + 0.5) * (self.input_image_size[0] / height)
        x = (torch.arange(width, device=boxes.device) + 0.5) * (self.input_image_size[1] / width)
        x0, y0, x1, y1 = (boxes + torch.tensor([0.0, 0.0, 1.0, 1.0], device=boxes.device)).unbind(dim=1)
        u = (2 * x - (x0 + x1)[:, None]) / (x1 - x0).clamp(min=1)[:, None]
        v = (2 * y - (y0 + y1)[:, None]) / (y1 - y0).clamp(min=1)[:, None]
        logits: torch.Tensor = 4 * (1 - u[:, None, :] ** 2 - v[:, :, None] ** 2)
        return logits.clamp(min=-12)[:, None]

    def forward(
        self,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None,
        masks: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As SAM's, a box without a mask bringing its ellipse."""
        if masks is None and boxes is not None:
            masks = self.box_prior(boxes.reshape(-1, 4))
        sparse, dense = super().forward(points, boxes, masks)
        return sparse, dense


def set_side(model: Sam, side: int) -> None:
    """Let the network take another square than 256, a multiple of 128.

    No weight depends on it: positions are encoded relative to the side. Training uses it, for cheap steps.
    """
    model.image_encoder.img_size = side
    encoder, tokens = model.prompt_encoder, int(ENLARGED * side) // STRIDE
    encoder.input_image_size = (side, side)
    encoder.image_embedding_size = (tokens, tokens)
    encoder.mask_input_size = (4 * tokens, 4 * tokens)


def build() -> Sam:
    """Build the network with random weights, as it is deployed: 256 x 256 in."""
    model = Sam(
        image_encoder=TinyEncoder(),
        prompt_encoder=PriorPromptEncoder(WIDTH, (1, 1), (SIZE, SIZE), mask_in_chans=16),
        mask_decoder=MaskDecoder(
            transformer_dim=WIDTH,
            transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, num_heads=4, mlp_dim=4 * WIDTH),
            iou_head_hidden_dim=WIDTH,
        ),
    )
    set_side(model, SIZE)
    return model
