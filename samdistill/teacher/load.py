"""Teachers by name or path. Knows which preprocessing goes with which name; knows no image."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from samdistill.errors import InputRejected, UsageError
from samdistill.teacher import checkpoints
from samdistill.teacher.sam import Teacher, parse_device


def load_teacher(name_or_path: str = "tiny", device: str = "cpu") -> Teacher:
    """Load a teacher.

    Parameters
    ----------
    name_or_path
        "tiny" (comes with the package); "sam_vit_b", "sam_vit_l", "sam_vit_h" or "medsam" from the cache
        folder; NAME:PATH for one of these from a file, `tiny` trained again among them; or the path of a SAM
        checkpoint, whose weights tell the architecture.
    device
        "cpu", "cuda" or "cuda:N".

    Raises
    ------
    UsageError
        When the name is unknown, the file is missing, or it is MedSAM's by its name and not called medsam.
    InputRejected
        When the file is damaged, not the architecture it should be, or holds NaN or infinity.
    DeviceUnavailable
        When the device cannot be had.
    """
    parse_device(device)
    name, colon, file = name_or_path.partition(":")
    if colon and not file:
        raise UsageError(f"a path must follow the colon of {name_or_path!r}; without one, write {name}.")
    if name == "tiny":
        from samdistill.teacher.tiny import WEIGHTS, load

        if file and not Path(file).is_file():
            raise UsageError(f"{file} is no file. Name weights that samdistill.teacher.tiny.train wrote.")
        path = Path(file) if file else WEIGHTS
        model, sha256 = load(path)
        _require_finite(model, path)
        return Teacher("tiny", model, weights_sha256=sha256, device=device)
    if not file and name not in checkpoints.KNOWN and Path(name_or_path).suffix:
        name, file = "", name_or_path
    if file and name != "medsam" and "medsam" in Path(file).name.lower():
        # The same architecture: nothing in the weights tells that they want other preprocessing.
        raise UsageError(
            f"{file} must be named medsam:{file} to get MedSAM's preprocessing, not {name_or_path}. "
            "Rename it if SAM's is meant."
        )
    path = Path(file) if file else checkpoints.find(name)
    expected = checkpoints.known(name).architecture if name else None
    state = checkpoints.read_state(path)
    architecture = checkpoints.architecture_of(state, path)
    if expected is not None and architecture != expected:
        raise InputRejected(f"{path} must hold {expected} weights to be {name}, not {architecture}.")
    from segment_anything import sam_model_registry  # not before sam.py has cured torchvision

    model = sam_model_registry[architecture]()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise InputRejected(
            f"{path} must hold all weights of SAM's {architecture}, and does not: {detail}"
        ) from error
    _require_finite(model, path)
    return Teacher(
        name or f"sam_{architecture}",
        model,
        weights_sha256=state_sha256(state),
        preprocessing="medsam" if name == "medsam" else "sam",
        device=device,
    )


def located(name_or_path: str) -> str:
    """What `load_teacher` takes, with the path in it made absolute, so that it holds in every folder."""
    name, colon, file = name_or_path.partition(":")
    if colon:
        return f"{name}:{Path(file).resolve()}" if file else name_or_path
    return str(Path(name).resolve()) if name not in checkpoints.KNOWN and Path(name).suffix else name


def _require_finite(model: nn.Module, path: Path) -> None:
    """Refuse weights whose masks would be empty because the numbers are none."""
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputRejected(f"{path} must hold finite weights, not NaN or infinity as in {key}.")


def state_sha256(state: checkpoints.State) -> str:
    """Name weights by their values: SHA-256 over names, types, shapes and bytes, in order of name."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
