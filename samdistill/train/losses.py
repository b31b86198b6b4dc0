"""The supervised loss, L = Dice + k BCE (knowledge mining, section 2.5), of segmentation_models_pytorch.

Its Dice term is taken over the batch and leaves out a class that no image of the batch has; false positives
of such a class meet the BCE term alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from samdistill.torchvision_cure import cure

IGNORE = -1.0
"""Target value of pixels that count in no loss: padding, and what the data set tells to ignore."""


class SegmentationLoss:
    """Dice + k BCE over sigmoid channels; classes may overlap.

    Parameters
    ----------
    bce_weight
        k.
    """

    def __init__(self, bce_weight: float) -> None:
        cure()
        from segmentation_models_pytorch import losses

        self.bce_weight = bce_weight
        self._dice = losses.DiceLoss("multilabel", ignore_index=int(IGNORE))
        self._bce = losses.SoftBCEWithLogitsLoss(ignore_index=int(IGNORE), reduction="sum")

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of a batch.

        Parameters
        ----------
        logits
            float32 (N, C, H, W).
        targets
            float32 (N, C, H, W) in [0, 1], IGNORE where a pixel does not count.

        Returns
        -------
        torch.Tensor
            float32 scalar.
        """
        counted = (targets != IGNORE).sum().clamp(min=1)
        bce = self._bce(logits, targets) / counted
        loss: torch.Tensor = self._dice(logits, targets) + self.bce_weight * bce
        return loss


class WeightedBCE:
    """Binary cross-entropy whose foreground weighs negative / positive pixels of its class.

    SAM Carries the Burden, training of the second student.

    Parameters
    ----------
    positive, negative
        (C,) pixels of each class over the pseudo labels; a class without any weighs 1.
    """

    def __init__(self, positive: Sequence[int], negative: Sequence[int]) -> None:
        weights = [n / p if p and n else 1.0 for p, n in zip(positive, negative, strict=True)]
        self.pos_weight = torch.tensor(weights)

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of float32 (N, C, H, W) logits and targets, IGNORE where a pixel does not count."""
        counted = targets != IGNORE
        each = functional.binary_cross_entropy_with_logits(
            logits,
            targets.clamp(min=0),
            pos_weight=self.pos_weight.to(logits).view(-1, 1, 1),
            reduction="none",
        )
        return (each * counted).sum() / counted.sum().clamp(min=1)
