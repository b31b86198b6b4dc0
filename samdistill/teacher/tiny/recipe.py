"""SAM's training recipe, scaled down: losses, jittered boxes, rounds of points from the error region.

Two phases. `dense`: the encoder alone, every pixel supervised, outlines and, for each object, "does this
pixel look like the inside of the box rather than its surroundings" from averages over the inscribed
ellipse and over the ring around the box. `promptable`: encoder, prompt encoder and decoder, in rounds.
Knows no files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from samdistill.teacher.decoder import UNUSED, PromptBatch, decode, encode_prompts
from samdistill.teacher.tiny.model import PIXEL

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

POINTS = 4  # point slots of a training prompt
Batch = dict[str, torch.Tensor]


class DenseHead(nn.Module):
    """Supervises the embedding directly; thrown away after training."""

    def __init__(self, width: int, features: int = 24) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(width, 48, 2, 2),
            nn.GroupNorm(8, 48),
            nn.GELU(),
            nn.ConvTranspose2d(48, features, 2, 2),
        )
        self.border = nn.Conv2d(features, 1, 1)
        self.query = nn.Sequential(nn.Linear(2 * features, 96), nn.GELU(), nn.Linear(96, features + 2))

    def forward(
        self, embeddings: torch.Tensor, prior: torch.Tensor, images: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, C, h, w) embeddings, (N, 4h, 4w) priors of N images: (B, 4h, 4w) and (N, 4h, 4w) logits."""
        maps = self.up(embeddings)
        flat = maps.flatten(2)[images]
        p = prior.flatten(1).to(flat.dtype)
        inside = (p > 1).to(flat.dtype) + 1e-4
        ring = ((p < -2) & (p > -9)).to(flat.dtype) + 1e-4
        means = [torch.einsum("nk,nck->nc", w, flat) / w.sum(dim=1, keepdim=True) for w in (inside, ring)]
        query = self.query(torch.cat(means, dim=1))
        logits = torch.einsum("nc,nck->nk", query[..., :-2], flat)
        logits = logits + query[..., -2:-1] + (1 + query[..., -1:]) * p * 0.5
        return self.border(maps)[:, 0], logits.reshape(prior.shape)


def normalise(model: Sam, image: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
    """(B, S, S, 3) uint8 to (B, 3, S, S) normalised, zero outside the content."""
    x = (image.permute(0, 3, 1, 2).float() - model.pixel_mean) / model.pixel_std
    side = torch.arange(image.shape[1])
    rows, columns = side[None, :, None], side[None, None, :]
    inside = (rows < content[:, 0, None, None]) & (columns < content[:, 1, None, None])
    normal: torch.Tensor = (x * inside[:, None]).contiguous(memory_format=torch.channels_last)
    return normal


def jitter(boxes: torch.Tensor, generator: torch.Generator, side: int, most: float = 0.2) -> torch.Tensor:
    """Move each side by up to a share of the box's length along it; one box in eight stays exact.

    Parameters
    ----------
    boxes
        (..., 4) half-open xyxy, in a frame of that side. Returned alike, at least 2 px long, inside it.
    """
    lengths = boxes[..., 2:] - boxes[..., :2]
    reach = most * (torch.rand(boxes.shape[:-1], generator=generator) > 0.125).float()
    reach = reach * (0.4 + 0.6 * torch.rand(boxes.shape[:-1], generator=generator))
    move = (2 * torch.rand(boxes.shape, generator=generator) - 1) * reach[..., None]
    moved = (boxes + move * torch.cat([lengths, lengths], dim=-1)).clamp(0, side)
    low = torch.minimum(moved[..., :2], moved[..., 2:] - 2).clamp(min=0)
    return torch.cat([low, torch.maximum(moved[..., 2:], low + 2)], dim=-1)


def side_of(target: torch.Tensor) -> int:
    """Side of the encoder's input that (..., h, w) targets in the low-resolution frame belong to."""
    return round(target.shape[-1] * PIXEL)


def to_indices(boxes: torch.Tensor) -> torch.Tensor:
    """Half-open boxes to SAM's pixel indices."""
    return boxes - boxes.new_tensor([0.0, 0.0, 1.0, 1.0])


def mask_loss(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Focal loss for soft targets plus one minus their IoU, one value an object.

    The IoU of soft masks is least over most, which is 1 where they are equal and nowhere else ("Jaccard
    metric losses", Wang et al. 2023); Dice of products is best by masks that are harder than their targets.

    Parameters
    ----------
    logits, target, weight
        (..., h, w) float32; target is the covered share in [0, 1]; weight favours the object's surroundings.
    """
    p = logits.sigmoid()
    cross = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = ((target - p) ** 2 + 0.05) * cross * weight
    focal = focal.sum(dim=(-1, -2)) / weight.sum(dim=(-1, -2))
    shared = torch.minimum(p, target).sum(dim=(-1, -2))
    iou = (shared + 1) / (torch.maximum(p, target).sum(dim=(-1, -2)) + 1)
    return 4 * focal + 1.5 * (1 - iou)


def surroundings(boxes: torch.Tensor, low: int) -> torch.Tensor:
    """(N, low, low) weights, low-resolution frame: 1 in the box grown by a third, 0.05 elsewhere."""
    grid = (torch.arange(low) + 0.5) * PIXEL
    margin = (boxes[:, 2:] - boxes[:, :2]) * 0.33 + 4
    first, last = boxes[:, :2] - margin, boxes[:, 2:] + margin
    x = (grid > first[:, 0, None]) & (grid < last[:, 0, None])
    y = (grid > first[:, 1, None]) & (grid < last[:, 1, None])
    return 0.05 + 0.95 * (y[:, :, None] & x[:, None, :]).float()


def dense_loss(
    model: Sam, head: DenseHead, embeddings: torch.Tensor, batch: Batch, generator: torch.Generator
) -> torch.Tensor:
    """Loss of the dense phase."""
    target, boxes = batch["targets"].float() / 255, batch["boxes"]
    prior = model.prompt_encoder.box_prior(to_indices(jitter(boxes, generator, side_of(target))))[:, 0]
    border, logits = head(embeddings, prior, batch["owner"])
    edge = batch["border"].float() / 255
    outline = functional.binary_cross_entropy_with_logits(border.float(), edge, pos_weight=torch.tensor(3.0))
    weight = surroundings(boxes, target.shape[-1])
    objects = mask_loss(logits.float(), target, weight)
    return objects.mean() + 0.3 * outline


def promptable_loss(
    model: Sam, embeddings: torch.Tensor, batch: Batch, generator: torch.Generator, *, second: float = 0.6
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of the promptable phase: a first round by box or points, a second with its error and its logits.

    `second` is the share of prompt sets that see the second round, and its weight.
    """
    boxes, target, images = batch["boxes"], batch["targets"].float() / 255, batch["owner"]
    weight = surroundings(boxes, target.shape[-1])
    n = len(boxes)
    prompt = first_prompt(boxes, target, generator)
    logits, scores = forward(model, embeddings[images], prompt)
    loss, parts = round_loss(logits, scores, target, weight, ~prompt.has_box)
    # Large objects more often: it is of them that a second pass without the box loses a part.
    likely = target.mean(dim=(1, 2)).sqrt() + 0.02
    keep = torch.multinomial(likely, max(1, int(second * n)), generator=generator)
    # As in use: of an ambiguous prompt the best of three by predicted IoU goes on.
    index = torch.where(prompt.has_box, 0, 1 + scores[:, 1:].argmax(dim=1))
    best = logits.detach()[keep, index[keep]]
    again = next_prompt(
        PromptBatch(*[field[keep] for field in prompt]), boxes[keep], target[keep], best, generator
    )
    logits2, scores2 = forward(model, unsure(embeddings[images[keep]], generator), again)
    none = torch.zeros(len(keep), dtype=torch.bool)
    loss2, parts2 = round_loss(logits2, scores2, target[keep], weight[keep], none)
    # No worse than the mask it was given: what a second round loses counts four times.
    before = mask_loss(best, target[keep], weight[keep])
    worse = (mask_loss(logits2[:, 0], target[keep], weight[keep]) - before).clamp(min=0)
    loss = loss + second * (loss2 + 3 * worse.mean())
    parts["second"] = parts2["iou"]
    parts["second_gain"] = parts2["iou"] - float(ious(best, target[keep]).mean())
    parts["worse"] = float(worse.detach().mean())
    with_box = prompt.has_box
    chosen = scores[:, 1:].argmax(dim=1, keepdim=True)
    if not with_box.all():
        parts["points"] = float(ious(logits[:, 1:], target[:, None]).gather(1, chosen)[~with_box].mean())
    parts["box"] = float(ious(logits[:, 0], target)[with_box].mean())
    parts["ellipse"] = float(
        ious(model.prompt_encoder.box_prior(prompt.boxes)[:, 0], target)[with_box].mean()
    )
    return loss, parts


def unsure(features: torch.Tensor, generator: torch.Generator, share: float = 0.5) -> torch.Tensor:
    """Weaken the evidence of a share of (N, C, h, w) embeddings: channels dropped, another's mixed in.

    So that the second round learns to believe its mask where a picture tells it little, as those of a kind
    never seen do.
    """
    n, channels = features.shape[:2]
    some = (torch.rand(n, generator=generator) < share).to(features.dtype)[:, None, None, None]
    kept = (torch.rand(n, channels, 1, 1, generator=generator) > 0.25).to(features.dtype) / 0.75
    mix = 0.6 * torch.rand(n, 1, 1, 1, generator=generator).to(features.dtype)
    other = features[torch.randperm(n, generator=generator)]
    return torch.lerp(features, kept * ((1 - mix) * features + mix * other), some)


def box_score(model: Sam, batch: Batch, generator: torch.Generator) -> float:
    """Mean IoU, in the low-resolution frame, of the single mask for jittered boxes."""
    boxes, target, images = batch["boxes"], batch["targets"].float() / 255, batch["owner"]
    n, low = len(boxes), target.shape[-1]
    points, labels = empty_points(n)
    moved = to_indices(jitter(boxes, generator, side_of(target), most=0.15))
    yes, no = torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    prompt = PromptBatch(points, labels, moved, yes, torch.zeros(n, 1, low, low), no)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        embeddings = model.image_encoder(normalise(model, batch["image"], batch["content"]))
        logits, _ = forward(model, embeddings[images], prompt)
    return float(ious(logits[:, 0], target).mean())


def forward(model: Sam, embeddings: torch.Tensor, prompt: PromptBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 4, 4h, 4w) logits and (N, 4) predicted IoU, float32."""
    pe = model.prompt_encoder.get_dense_pe()
    tokens, exists, dense = encode_prompts(model.prompt_encoder, prompt)
    logits, scores = decode(model.mask_decoder, embeddings, pe, tokens, exists, dense)
    return logits.float(), scores.float()


def ious(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """IoU of logits > 0 with target > 0.5 over the last two axes."""
    mask, truth = logits > 0, target > 0.5
    shared = (mask & truth).sum(dim=(-1, -2)).float()
    return shared / (mask | truth).sum(dim=(-1, -2)).clamp(min=1)


def round_loss(
    logits: torch.Tensor,
    scores: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    ambiguous: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of one round.

    The single mask always learns; of the three the best one learns, fully where the prompt is ambiguous
    (points alone) and a little elsewhere. All predicted IoU learn by squared error.
    """
    first = mask_loss(logits[:, 0], target, weight)
    some = ambiguous | (torch.rand(len(ambiguous)) < 0.15)
    three = mask_loss(logits[some, 1:], target[some, None].expand(-1, 3, -1, -1), weight[some, None])
    best = three.min(dim=1).values + 0.05 * three.mean(dim=1)
    truth = ious(logits.detach(), target[:, None])
    quality = functional.mse_loss(scores, truth)
    loss = first.mean() + best.sum() / len(ambiguous) + quality
    return loss, {
        "mask": float(first.detach().mean()),
        "iou": float(truth[:, 0].mean()),
        "quality": float(quality.detach()),
    }


def first_prompt(boxes: torch.Tensor, target: torch.Tensor, generator: torch.Generator) -> PromptBatch:
    """A jittered box (45 %), a box with 1 to 3 points (20 %), one point (18 %), several points (17 %)."""
    n = len(boxes)
    kind = torch.rand(n, generator=generator)
    points, labels = empty_points(n)
    inside, _ = pick_pixels(target > 0.5, 3, generator)
    count = torch.randint(1, 4, (n,), generator=generator)
    count = torch.where(kind < 0.45, 0, torch.where((kind > 0.65) & (kind < 0.83), 1, count))
    slots = torch.arange(3)[None] < count[:, None]
    points[:, :3], labels[:, :3] = inside, torch.where(slots, 1, UNUSED)
    has_box = kind < 0.65
    labels[:, 3] = torch.where(has_box, UNUSED, -1)
    none = torch.zeros(n, 1, *target.shape[-2:])
    moved = to_indices(jitter(boxes, generator, side_of(target)))
    return PromptBatch(points, labels, moved, has_box, none, torch.zeros(n, dtype=torch.bool))


def next_prompt(
    before: PromptBatch,
    boxes: torch.Tensor,
    target: torch.Tensor,
    logits: torch.Tensor,
    generator: torch.Generator,
) -> PromptBatch:
    """The last logits as mask, with points, the box kept (55 %).

    The points: the middle of the last mask, as one asks without knowing the truth (55 %); or one from the
    error region or none, and up to two of the object.
    """
    n = len(boxes)
    kind = torch.rand(n, generator=generator)
    truth, mask = target > 0.5, logits > 0
    points, labels = empty_points(n)
    wrong, exists = pick_pixels(truth ^ mask, 1, generator)
    inside, _ = pick_pixels(truth, 2, generator)
    at = (wrong[:, 0] / PIXEL).long().clamp(0, target.shape[-1] - 1)
    positive = truth[torch.arange(n), at[:, 1], at[:, 0]]
    use_error = exists & (kind < 0.35)
    points[:, 0], labels[:, 0] = wrong[:, 0], torch.where(use_error, positive.long(), UNUSED)
    central = (kind > 0.45) & mask.flatten(1).any(dim=1)
    points[central, 0], labels[central, 0] = middles(mask[central]), 1
    count = torch.randint(0, 3, (n,), generator=generator) * ~central
    points[:, 1:3] = inside
    labels[:, 1:3] = torch.where(torch.arange(2)[None] < count[:, None], 1, UNUSED)
    has_box = before.has_box & (torch.rand(n, generator=generator) < 0.55)
    labels[:, 3] = torch.where(has_box, UNUSED, -1)
    return PromptBatch(
        points, labels, before.boxes, has_box, logits[:, None], torch.rand(n, generator=generator) < 0.9
    )


def empty_points(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 4, 2) zeros and (N, 4) labels UNUSED."""
    return torch.zeros(n, POINTS, 2), torch.full((n, POINTS), UNUSED)


def pick_pixels(
    masks: torch.Tensor, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw pixels of each mask.

    Returns
    -------
    tuple
        (N, count, 2) float32 xy, encoder's input frame, pixel centres at integers; (N,) bool whether
        the mask has any pixel.
    """
    flat = masks.flatten(1).float()
    exists = flat.sum(dim=1) > 0
    index = torch.multinomial(flat + (~exists)[:, None].float(), count, replacement=True, generator=generator)
    low = masks.shape[-1]
    xy = torch.stack([index % low, index // low], dim=-1).float()
    return (xy + 0.5) * PIXEL - 0.5, exists


def middles(masks: torch.Tensor) -> torch.Tensor:
    """(N, h, w) bool, none empty, to (N, 2) xy as `pick_pixels`: the pixel nearest to the centroid."""
    index = torch.arange(masks.shape[-1], dtype=torch.float32)
    area = masks.sum(dim=(1, 2)).float()
    x = (masks.sum(dim=1) * index).sum(dim=1) / area
    y = (masks.sum(dim=2) * index).sum(dim=1) / area
    far = (index - x[:, None])[:, None, :] ** 2 + (index - y[:, None])[:, :, None] ** 2
    nearest = far.masked_fill(~masks, torch.inf).flatten(1).argmin(dim=1)
    side = masks.shape[-1]
    return (torch.stack([nearest % side, nearest // side], dim=1) + 0.5) * PIXEL - 0.5


def metrics(parts: list[dict[str, Any]]) -> str:
    """Mean of each number over steps, as one line."""
    keys = sorted({key for part in parts for key in part})
    means = {key: sum(p[key] for p in parts if key in p) / sum(key in p for p in parts) for key in keys}
    return " ".join(f"{key} {value:.3f}" for key, value in means.items())
