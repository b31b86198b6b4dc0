"""The teachers' weight files: which are known, where they lie, how they are fetched and read.

Nothing here touches the network but `fetch`. Files are read with `weights_only=True`, so that a checkpoint
from elsewhere cannot run code. Knows no image and no prompt.
"""

from __future__ import annotations

import http.client
import pickle
import ssl
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from samdistill import plans
from samdistill.errors import DeviceUnavailable, InputRejected, UsageError
from samdistill.io.files import atomic_write, locked, remove_leftovers, sha256_file

State = dict[str, torch.Tensor]
Architecture = Literal["vit_b", "vit_l", "vit_h"]


@dataclass(frozen=True)
class Checkpoint:
    """One known teacher.

    Attributes
    ----------
    architecture
        segment_anything's name of it.
    file
        Name of the official file.
    page
        Where a person finds it.
    url, sha256, size_mb
        Direct address and hash; None where the authors offer none.
    """

    architecture: Architecture
    file: str
    page: str
    url: str | None
    sha256: str | None
    size_mb: int
    licence: str = "Apache-2.0"


_META = "https://dl.fbaipublicfiles.com/segment_anything/"
_SAM_PAGE = "https://github.com/facebookresearch/segment-anything#model-checkpoints"
KNOWN: dict[str, Checkpoint] = {
    "sam_vit_b": Checkpoint(
        "vit_b",
        "sam_vit_b_01ec64.pth",
        _SAM_PAGE,
        _META + "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375,
    ),
    "sam_vit_l": Checkpoint(
        "vit_l",
        "sam_vit_l_0b3195.pth",
        _SAM_PAGE,
        _META + "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1250,
    ),
    "sam_vit_h": Checkpoint(
        "vit_h",
        "sam_vit_h_4b8939.pth",
        _SAM_PAGE,
        _META + "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2564,
    ),
    # Offered by its authors through a file-sharing page only, without a hash.
    "medsam": Checkpoint(
        "vit_b", "medsam_vit_b.pth", "https://github.com/bowang-lab/MedSAM#installation", None, None, 375
    ),
}
_ENCODER_WIDTHS: dict[int, Architecture] = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}


def cache_folder() -> Path:
    """Folder for fetched teachers: `samdistill/teachers` below XDG_CACHE_HOME or ~/.cache."""
    return plans.cache_folder() / "teachers"


def known(name: str) -> Checkpoint:
    """Look a teacher up.

    Raises
    ------
    UsageError
        When there is none of that name.
    """
    if name not in KNOWN:
        raise UsageError(f"teacher must be tiny, {', '.join(KNOWN)} or NAME:PATH, not {name!r}.")
    return KNOWN[name]


def by_hand(name: str) -> str:
    """Say how a person brings the file to this machine."""
    checkpoint = known(name)
    source = checkpoint.url or checkpoint.page
    return (
        f"Get {checkpoint.file} ({checkpoint.size_mb} MB) from {source} and put it at "
        f"{cache_folder() / checkpoint.file}, or name the file: {name}:PATH."
    )


def find(name: str) -> Path:
    """Path of a known teacher's file in the cache folder.

    Raises
    ------
    UsageError
        When it is not there; the message says how it gets there.
    InputRejected
        When its hash is not the official one.
    """
    checkpoint = known(name)
    path = cache_folder() / checkpoint.file
    if not path.is_file():
        fetch_it = f"Run `samdistill teacher fetch {name}`, or by hand: " if checkpoint.url else ""
        raise UsageError(f"the teacher {name} is not on this machine. {fetch_it}{by_hand(name)}")
    verify(name, path)
    return path


def verify(name: str, path: Path) -> str:
    """Compare a file with the official hash and return its own.

    Raises
    ------
    InputRejected
        When the hash is known and differs.
    """
    actual, expected = sha256_file(path), known(name).sha256
    if expected is not None and actual != expected:
        raise InputRejected(
            f"{path} must have the SHA-256 {expected} to be the official {name}, not {actual}: it is damaged "
            f"or another file. Remove it and fetch again; weights of your own are named {name}:PATH."
        )
    return actual


def fetch(name: str, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Download a teacher into the cache folder; there already and sound, it is left alone.

    Parameters
    ----------
    name
        A known teacher with an official address.
    progress
        Called with bytes done and bytes in total.

    Raises
    ------
    UsageError
        When the authors offer no direct address; the message says what to do by hand.
    DeviceUnavailable
        When the address cannot be reached, or the connection ends early.
    UsageError
        When the cache folder cannot be written, or another process fetches into it.
    InputRejected
        When what arrived has another hash. Whatever goes wrong, nothing is kept.
    """
    checkpoint = known(name)
    path = cache_folder() / checkpoint.file
    if path.is_file():
        verify(name, path)
        return path
    if checkpoint.url is None:
        raise UsageError(f"{name} cannot be fetched: its authors offer no direct address. {by_hand(name)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        refusal = f"another process is fetching into {path.parent}: wait for it, then run this again."
        with locked(path.parent, refusal):
            remove_leftovers(path.parent, [path.name])
            with atomic_write(path) as temporary:
                _download(checkpoint.url, temporary, progress)
                actual = sha256_file(temporary)
                if checkpoint.sha256 not in (None, actual):
                    raise InputRejected(
                        f"what {checkpoint.url} gave must have the SHA-256 {checkpoint.sha256}, not "
                        f"{actual}; nothing was kept. Did a proxy answer? Fetch again, or by hand: "
                        f"{by_hand(name)}"
                    )
    except _BROKEN as error:
        raise DeviceUnavailable(f"{checkpoint.url} cannot be reached: {error}. {by_hand(name)}") from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}. Free space, or name another place with "
            "XDG_CACHE_HOME."
        ) from error
    return path


_BROKEN = (
    urllib.error.URLError,
    http.client.HTTPException,
    ssl.SSLError,
    TimeoutError,
    ConnectionError,
)
"""What a bad connection raises; other errors of the system are the disk's."""


def _download(url: str, path: Path, progress: Callable[[int, int], None] | None) -> None:
    with urllib.request.urlopen(url, timeout=60) as response, path.open("wb") as file:
        total, done = int(response.headers.get("Content-Length", 0)), 0
        while chunk := response.read(1 << 20):
            file.write(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
    if done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def read_state(path: Path) -> State:
    """Read a checkpoint of segment_anything's form.

    Raises
    ------
    UsageError
        When there is no such file.
    InputRejected
        When it is not a torch file, is damaged, holds other things than tensors, or is not SAM's.
    """
    if not path.is_file():
        raise UsageError(f"{path} is no file. Name a checkpoint, or see `samdistill teacher list`.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses at what is wrong; the answer is below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputRejected(
            f"{path} is damaged, or holds Python objects besides tensors, which are never loaded. Save its "
            "state_dict alone."
        ) from error
    except Exception as error:  # the unpickler raises whatever a file's bytes make it
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputRejected(
            f"{path} must be a torch checkpoint, and is damaged or something else: {reason}"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise InputRejected(
            f"{path} must be a state_dict, tensors by their names, not a {type(state).__name__} of others."
        )
    architecture_of(state, path)
    return state


def architecture_of(state: State, path: Path) -> Architecture:
    """Tell the architecture by the encoder's width.

    Raises
    ------
    InputRejected
        When these are not the weights of a SAM.
    """
    patches = state.get("image_encoder.patch_embed.proj.weight")
    if patches is None or patches.ndim != 4 or patches.shape[0] not in _ENCODER_WIDTHS:
        raise InputRejected(
            f"{path} must hold the weights of a SAM (vit_b, vit_l or vit_h), and has no encoder of theirs. "
            "SAM 2, MobileSAM and the like are other architectures."
        )
    return _ENCODER_WIDTHS[patches.shape[0]]
