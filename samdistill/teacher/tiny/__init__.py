"""The teacher that comes with the package: a small promptable segmenter, so that everything runs offline.

Its weights lie beside this file, `MODEL_CARD.md` says what they were trained on and what they reach. For
real work use SAM or MedSAM.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from segment_anything.modeling import Sam

WEIGHTS = Path(__file__).with_name("tiny.safetensors")
# No weight's shape tells what size of tokens it was trained for: others would load and be a little wrong.
TRAINED_FOR = {"tokens": "56"}


def load(path: Path = WEIGHTS) -> tuple[Sam, str]:
    """Build the network with its trained weights.

    Returns
    -------
    tuple
        The network, float32, and the SHA-256 of the weight file.

    Raises
    ------
    InputRejected
        When the file is missing, damaged or of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    from samdistill.errors import InputRejected
    from samdistill.teacher.tiny.model import build

    try:
        content = path.read_bytes()  # once: training may put other weights there meanwhile
        state = parse(content)
        trained_for = _metadata(content)
        if any(trained_for.get(key) != value for key, value in TRAINED_FOR.items()):
            raise RuntimeError(f"trained for {trained_for}, not {TRAINED_FOR}")
        model = build()
        model.load_state_dict({key: value.float() for key, value in state.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:300]
        cure = "Install samdistill anew" if path == WEIGHTS else "Name what tiny.train wrote"
        raise InputRejected(f"{path} must hold the embedded teacher's weights: {detail}. {cure}.") from error
    return model, hashlib.sha256(content).hexdigest()


def _metadata(content: bytes) -> dict[str, str]:
    """What a sound file's header says beside its tensors, which safetensors gives of files alone."""
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return metadata


def save(state: dict[str, torch.Tensor], path: Path) -> None:
    """Write a network's state as it ships: fp16, with what it was trained for."""
    from safetensors.torch import save_file

    save_file({key: value.half().contiguous() for key, value in state.items()}, path, TRAINED_FOR)
