"""One interface in front of any SAM: embed images, segment prompts, numerically as `SamPredictor`.

`teacher_frame` makes SAM's conventions of ours. The prompt sets of a whole batch of images go through the
decoder in one call. Knows no class, no student and no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from samdistill.arrays import Image, Mask, check_image
from samdistill.errors import DeviceUnavailable
from samdistill.prompts import Prompts
from samdistill.proposals import Proposals
from samdistill.teacher.decoder import PromptBatch, check_finite, decode, encode_prompts
from samdistill.teacher.propose import ProposeConfig, propose
from samdistill.teacher_frame import (
    Preprocessing,
    TeacherFrame,
    TeacherMasks,
    most_embedded,
    most_sets,
    most_upscaled,
    parts,
    prompt_arrays,
    wants_best_of_three,
)
from samdistill.torchvision_cure import cure

cure()

from segment_anything.modeling import Sam  # noqa: E402


@dataclass(frozen=True, eq=False)
class Embedding:
    """What the encoder made of one image.

    Attributes
    ----------
    features
        (C, h, w) float32, on the teacher's device.
    image_size
        (height, width) of the image.
    input_size
        (height, width) that the image takes in the encoder's square input; the rest is padding.
    """

    features: torch.Tensor
    image_size: tuple[int, int]
    input_size: tuple[int, int]


class Teacher:
    """A frozen SAM.

    Attributes
    ----------
    name
        As `load_teacher` was given it, without a path.
    model
        segment_anything's Sam, in eval mode, without gradients.
    preprocessing
        "sam" (longest side, mean and deviation) or "medsam" (stretched square, min-max); the latter takes
        boxes only.
    weights_sha256
        Names the weights, for caches and provenance.
    """

    def __init__(
        self,
        name: str,
        model: Sam,
        *,
        weights_sha256: str,
        preprocessing: Preprocessing = "sam",
        device: str = "cpu",
    ) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False).to(parse_device(device))
        self.preprocessing: Preprocessing = preprocessing
        self.weights_sha256 = weights_sha256

    @property
    def device(self) -> torch.device:
        """Where the teacher computes."""
        return torch.device(self.model.device)

    @property
    def input_side(self) -> int:
        """Side of the encoder's square input, pixels."""
        return int(self.model.image_encoder.img_size)

    @torch.no_grad()
    def embed(self, images: Sequence[Image]) -> list[Embedding]:
        """Run the encoder, the dear part.

        Parameters
        ----------
        images
            uint8 (H, W, 3) RGB each, of any sizes.
        """
        for image in images:
            check_image(image)
        embeddings: list[Embedding] = []
        step = most_embedded(self.input_side)
        for start in range(0, len(images), step):
            batch = images[start : start + step]
            part = [self._prepare(image) for image in batch]
            features = self.model.image_encoder(torch.stack([pixels for pixels, _ in part]).to(self.device))
            for image, (_, size), one in zip(batch, part, features, strict=True):
                embeddings.append(Embedding(one, (image.shape[0], image.shape[1]), size))
        return embeddings

    def segment(
        self,
        embeddings: Sequence[Embedding],
        prompts: Sequence[Sequence[Prompts]],
        *,
        multimask: bool | None = None,
        previous: npt.NDArray[np.float32] | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> TeacherMasks:
        """Segment every prompt set of every image in one decoder call (several above `most_sets`).

        Parameters
        ----------
        embeddings
            One an image.
        prompts
            For each image its prompt sets, in the image's frame.
        multimask
            True: the best of three masks by predicted IoU; False: the single mask; None: the best of three
            where a set is ambiguous, that is points alone, without box or mask.
        previous
            (N, 4h, 4w) float32 low-resolution logits of an earlier answer to the same sets in flattened
            order; they take the place of `mask_logits`.
        sizes
            (height, width) of each image's masks; None: the image's own. Prompts stay in the image's frame.
        """
        logits, scores = self.decode(embeddings, prompts, previous=previous)
        wanted = wants_best_of_three(prompts, multimask, has_previous=previous is not None)
        chosen = torch.from_numpy(wanted).to(logits.device)
        index = torch.where(chosen, 1 + scores[:, 1:].argmax(dim=1), 0)
        rows = torch.arange(len(logits), device=logits.device)
        best = logits[rows, index]
        masks: list[Mask] = []
        done = 0
        for number, (embedding, each) in enumerate(zip(embeddings, prompts, strict=True)):
            seen = embedding if sizes is None else replace(embedding, image_size=sizes[number])
            own = best[done : done + len(each)]
            for part in parts(len(each), most_upscaled(seen.image_size, self.input_side)):
                masks.extend((self.upscale(own[part], seen) > self.mask_threshold).cpu().numpy())
            done += len(each)
        return TeacherMasks(masks, best.cpu().numpy(), scores[rows, index].cpu().numpy())

    @torch.no_grad()
    def decode(
        self,
        embeddings: Sequence[Embedding],
        prompts: Sequence[Sequence[Prompts]],
        *,
        previous: npt.NDArray[np.float32] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `segment`, but all four masks of each set, the single one first.

        Returns
        -------
        tuple
            (N, 4, 4h, 4w) float32 logits and (N, 4) float32 predicted IoU, on the teacher's device.

        Raises
        ------
        InputRejected
            When the network answers with NaN or infinity.
        """
        if len(embeddings) != len(prompts):
            raise ValueError(
                f"prompts must hold one list an embedding, {len(embeddings)}, not {len(prompts)}."
            )
        encoder = self.model.prompt_encoder
        counts = [len(each) for each in prompts]
        n = sum(counts)
        height, width = encoder.mask_input_size
        if previous is not None and previous.shape != (n, height, width):
            raise ValueError(f"previous must be float32 {(n, height, width)}, not {previous.shape}.")
        if n == 0:
            empty = torch.zeros(0, 4, height, width, device=self.device)
            return empty, torch.zeros(0, 4, device=self.device)
        batch = self._batch(embeddings, prompts, previous)
        owners = np.repeat(np.arange(len(counts)), counts)
        answers = []
        for part in parts(n, most_sets(embeddings[0].features.shape)):
            tokens, exists, dense = encode_prompts(encoder, PromptBatch(*[field[part] for field in batch]))
            features = torch.stack([embeddings[owner].features for owner in owners[part]])
            answers.append(
                decode(self.model.mask_decoder, features, encoder.get_dense_pe(), tokens, exists, dense)
            )
        logits, scores = (torch.cat(both) for both in zip(*answers, strict=True))
        check_finite(logits, scores)
        return logits, scores

    def propose(
        self, embedding: Embedding, config: ProposeConfig | None = None, *, image: Image | None = None
    ) -> Proposals:
        """Find everything in an image; see `propose.propose`."""
        return propose(self, embedding, config, image=image)

    @property
    def mask_threshold(self) -> float:
        """Masks are what lies strictly above this after `upscale`."""
        return 0.5 if self.preprocessing == "medsam" else float(self.model.mask_threshold)

    @torch.no_grad()
    def upscale(self, low_res_logits: torch.Tensor, embedding: Embedding) -> torch.Tensor:
        """Bring (N, 4h, 4w) logits to (N, H, W) of the image, logits still (MedSAM: probabilities)."""
        if len(low_res_logits) == 0:
            return low_res_logits.new_zeros((0, *embedding.image_size))
        maps = low_res_logits[:, None]
        if self.preprocessing == "medsam":
            maps = maps.sigmoid()
        else:
            maps = functional.interpolate(maps, (self.input_side,) * 2, mode="bilinear", align_corners=False)
            maps = maps[..., : embedding.input_size[0], : embedding.input_size[1]]
            if embedding.input_size == embedding.image_size:
                return maps[:, 0]
        return functional.interpolate(maps, embedding.image_size, mode="bilinear", align_corners=False)[:, 0]

    def _prepare(self, image: Image) -> tuple[torch.Tensor, tuple[int, int]]:
        """(3, S, S) float32 normalised pixels and the (height, width) that is not padding."""
        frame = self._frame((image.shape[0], image.shape[1]))
        resized = torch.from_numpy(np.array(frame.resized(image))).permute(2, 0, 1)
        if self.preprocessing == "medsam":
            low, high = int(resized.min()), int(resized.max())
            return ((resized - low).double() / max(high - low, 1e-8)).float(), frame.input_size
        return self.model.preprocess(resized.to(self.device)), frame.input_size

    def _frame(self, image_size: tuple[int, int]) -> TeacherFrame:
        return TeacherFrame(image_size, self.input_side, self.preprocessing)

    def _batch(
        self,
        embeddings: Sequence[Embedding],
        prompts: Sequence[Sequence[Prompts]],
        previous: npt.NDArray[np.float32] | None,
    ) -> PromptBatch:
        """Pad all sets to common length, in the encoder's frame and by SAM's conventions."""
        height, width = self.model.prompt_encoder.mask_input_size
        frames = [self._frame(embedding.image_size) for embedding in embeddings]
        arrays = prompt_arrays(frames, prompts, (height, width), previous)
        return PromptBatch(*[torch.from_numpy(array).to(self.device) for array in arrays])


def parse_device(device: str) -> torch.device:
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise DeviceUnavailable(f"device must be cpu, cuda or cuda:N, not {device!r}.")
    if chosen.type == "cuda" and not (
        torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count()
    ):
        raise DeviceUnavailable(
            f"device {device} cannot be had: torch sees {torch.cuda.device_count()} CUDA device(s)."
        )
    return chosen
