"""The student: U-Net++ of segmentation_models_pytorch behind a normalisation of its own.

Knows no data, loss or file; whoever calls it gives pixels and gets logits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
from torch import nn

from samdistill.errors import UsageError
from samdistill.torchvision_cure import cure
from samdistill.train import encoder
from samdistill.train.config import StudentConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Student(nn.Module):
    """Pixels in, logits out; the normalisation is part of the network, so it travels into every export.

    Parameters
    ----------
    config
        Architecture.
    classes
        C, the number of foreground classes; one sigmoid channel each.
    pretrained
        Load the encoder's ImageNet weights from the local cache.
    """

    def __init__(self, config: StudentConfig, classes: int, *, pretrained: bool = False) -> None:
        super().__init__()
        cure()
        import segmentation_models_pytorch as smp

        encoder.register()
        with _offline():
            try:
                self.net = smp.UnetPlusPlus(
                    config.encoder,
                    encoder_weights=_weights(config.encoder) if pretrained else None,
                    decoder_channels=list(config.decoder_channels),
                    classes=classes,
                )
            except KeyError as error:
                raise UsageError(
                    f"encoder must be a name segmentation_models_pytorch knows, not {config.encoder!r}; "
                    "for example resnet34, plain or tu-mobilenetv3_small_100."
                ) from error
            except RuntimeError as error:
                if "Unknown model" in str(error) or "Invalid pretrained" in str(error):
                    raise UsageError(f"timm knows no encoder {config.encoder!r}.") from error
                raise
            except ValueError as error:
                raise UsageError(
                    f"encoder must be one that U-Net++ can be built on, not {config.encoder!r}: {error}"
                ) from error
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) * 255)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Segment a batch in the model frame.

        Parameters
        ----------
        pixels
            uint8 or float32 (N, 3, H, W), 0..255 RGB; H and W multiples of 32.

        Returns
        -------
        torch.Tensor
            float32 (N, C, H, W), logits.
        """
        mean, std = cast(torch.Tensor, self.mean), cast(torch.Tensor, self.std)
        logits: torch.Tensor = self.net((pixels.to(mean.dtype) - mean) / std)
        return logits.float()


def build_student(config: StudentConfig, classes: int) -> tuple[Student, str]:
    """Make a student for training, its encoder pretrained where `config.encoder_weights` asks and can be had.

    Returns
    -------
    tuple
        The student, and what its encoder starts from: "imagenet" or "none".

    Raises
    ------
    UsageError
        When "imagenet" is demanded and the weights are not in the cache.
    """
    if config.encoder == encoder.NAME:
        if config.encoder_weights == "imagenet":
            raise UsageError(
                f"the encoder {encoder.NAME} has no ImageNet weights; it trains from random ones."
            )
        return Student(config, classes), "none"
    if config.encoder_weights != "none":
        try:
            return Student(config, classes, pretrained=True), "imagenet"
        except OSError as error:  # huggingface_hub's "not in the cache" errors are OSErrors
            if config.encoder_weights == "imagenet":
                raise UsageError(
                    f"the ImageNet weights of {config.encoder} are not in the local cache; run "
                    f"`samdistill train --fetch-encoder {config.encoder}` once with a network, or set "
                    'encoder_weights = "none".'
                ) from error
    return Student(config, classes), "none"


def check_encoder(student: Student, name: str) -> None:
    """Refuse an encoder that takes images of one size alone: the student sees whole images of any.

    Raises
    ------
    UsageError
        Then.
    """
    try:
        with torch.inference_mode():
            student.eval()(torch.zeros(1, 3, 64, 96))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"encoder must be one that takes images of any size, not {name!r}: {error}"
        ) from error


def fetch_encoder(name: str) -> None:
    """Download an encoder's ImageNet weights into the local cache; the one place that uses the network."""
    cure()
    import segmentation_models_pytorch as smp

    try:
        smp.encoders.get_encoder(name, weights=_weights(name))
    except (KeyError, RuntimeError) as error:
        raise UsageError(f"no ImageNet weights are known for the encoder {name!r}.") from error


def _weights(name: str) -> str | bool:
    """How segmentation_models_pytorch wants ImageNet weights asked for: timm's names carry their tag."""
    return True if name.startswith("tu-") else "imagenet"


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep huggingface_hub (smp's and timm's source of weights) to its cache."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
