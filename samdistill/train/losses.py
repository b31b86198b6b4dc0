"""The supervised loss, L = Dice + k BCE (knowledge mining, eq. 1), of segmentation_models_pytorch's parts.

Its Dice term is taken over the batch and leaves out a class that no image of the batch has; false positives
of such a class meet the BCE term alone.
"""

from __future__ import annotations

import torch

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
