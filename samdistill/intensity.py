"""The one rule by which pixels of any depth become uint8 RGB, the same in training and inference.

A bundle's manifest names the rule. Knows no file format.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Image, describe

KINDS = ("identity", "window", "percentiles")


class MeasuredPixels(np.ndarray[Any, np.dtype[Any]]):
    """Measured grey values (H, W) of a file that also says how they are shown, as DICOM does.

    Rules with a window of their own take the measured values, "identity" takes what is shown. Arrays computed
    from this one are measured values alone, so that the two never mix.

    Attributes
    ----------
    shown
        (H, W) uint8; None in arrays computed from this one.
    """

    shown: npt.NDArray[np.uint8] | None = None

    @classmethod
    def of(cls, values: npt.NDArray[Any], shown: npt.NDArray[np.uint8]) -> MeasuredPixels:
        """Tie the two together."""
        if shown.shape != values.shape or shown.dtype != np.uint8:
            raise ValueError(f"shown must be uint8 {values.shape}, not {describe(shown)}.")
        tied = values.view(cls)
        tied.shown = shown
        return tied

    def __reduce__(self) -> Any:
        if self.shown is None:
            return super().__reduce__()
        return MeasuredPixels.of, (np.asarray(self), self.shown)


@dataclass(frozen=True)
class IntensityRule:
    """How raw pixel values become uint8.

    Parameters
    ----------
    kind
        "identity": values are uint8 already. "window": `low`..`high` (raw values) map to 0..255 and are
        clipped. "percentiles": as window, between the image's own `low`-th and `high`-th percentile; where
        the two are equal, between its lowest and highest value. A constant image becomes 0.
    low, high
        Raw values for "window"; percentiles in [0, 100] for "percentiles"; unused for "identity".
    """

    kind: str = "identity"
    low: float = 0.0
    high: float = 255.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"intensity kind must be one of {', '.join(KINDS)}, not {self.kind!r}.")
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"intensity low must be below high, not {self.low} and {self.high}.")
        if self.kind == "percentiles" and not (self.low >= 0 and self.high <= 100):
            raise ValueError(f"percentiles must lie in [0, 100], not {self.low} and {self.high}.")

    def apply(self, raw: npt.NDArray[Any]) -> Image:
        """Turn raw pixels into a uint8 (H, W, 3) image.

        Parameters
        ----------
        raw
            (H, W) grey or (H, W, 3) RGB, any integer or float dtype, finite. Of `MeasuredPixels` the rule
            "identity" takes what is shown.

        Raises
        ------
        ValueError
            When the shape is another, a value is not finite, or the rule is "identity" and the values are
            not uint8.
        """
        if self.kind == "identity" and isinstance(raw, MeasuredPixels) and raw.shown is not None:
            raw = raw.shown
        raw = np.asarray(raw)
        if raw.ndim not in (2, 3) or (raw.ndim == 3 and raw.shape[2] != 3) or 0 in raw.shape:
            raise ValueError(f"pixels must be (H, W) or (H, W, 3), not {describe(raw)}.")
        if self.kind == "identity":
            if raw.dtype != np.uint8:
                raise ValueError(
                    f"pixels must be uint8 under the intensity rule 'identity', not {raw.dtype}. "
                    "Train with intensity 'percentiles' or a 'window' for deeper images."
                )
            grey = raw
        else:
            values: npt.NDArray[Any] = raw.astype(
                np.float64 if _is_beyond_single_precision(raw) else np.float32
            )
            if not np.isfinite(values).all():
                raise ValueError("pixels must be finite, not NaN or infinite.")
            low, high = self.low, self.high
            if self.kind == "percentiles":
                low, high = (float(v) for v in np.percentile(values, [self.low, self.high]))
                if low == high:  # a few bright pixels on an even ground: they are the picture
                    low, high = float(values.min()), float(values.max())
            scale = 255.0 / (high - low) if high > low else 0.0
            grey = np.clip(np.rint((values - low) * scale), 0, 255).astype(np.uint8)
        if grey.ndim == 3:
            return grey
        return np.repeat(grey[:, :, None], 3, axis=2)

    def to_dict(self) -> dict[str, Any]:
        """The rule as the manifest writes it."""
        return asdict(self)


def _is_beyond_single_precision(raw: npt.NDArray[Any]) -> bool:
    """Whether neighbouring whole numbers among the values could become one."""
    if raw.dtype.itemsize <= 2 or raw.dtype == np.float32:
        return False
    return bool(max(-float(raw.min()), float(raw.max())) > 1 << 24)
