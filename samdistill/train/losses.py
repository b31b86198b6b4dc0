"""The supervised loss, L = Dice + k BCE (knowledge mining, eq. 1), of segmentation_models_pytorch's parts."""

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
        self._bce = losses.SoftBCEWithLogitsLoss(ignore_index=int(IGNORE))

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
        loss: torch.Tensor = self._dice(logits, targets) + self.bce_weight * self._bce(logits, targets)
        return loss
