"""Loading teachers: what is refused, by which exception and exit code; fetching without a network."""

from __future__ import annotations

import errno
import http.client
import io
import os
import pickle
import random
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the teacher needs the extra train")

from small_sam import small_sam  # noqa: E402

from samdistill.errors import DeviceUnavailable, InputRejected, SamdistillError, UsageError  # noqa: E402
from samdistill.io.files import locked, sha256_file  # noqa: E402
from samdistill.teacher import checkpoints, load_teacher  # noqa: E402
from samdistill.teacher.load import state_sha256  # noqa: E402


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "samdistill" / "teachers"


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def vit_b_encoder_only() -> dict[str, torch.Tensor]:
    return {"image_encoder.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16)}


def write(kind: str, path: Path) -> None:
    """Make a bad checkpoint of one kind."""
    if kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        torch.save(vit_b_encoder_only(), path)
        path.write_bytes(path.read_bytes()[:-400])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif kind == "objects":
        torch.save({"model": Evil()}, path)
    elif kind == "list":
        torch.save([torch.zeros(1)], path)
    elif kind == "numbers":
        torch.save({**vit_b_encoder_only(), 3: torch.zeros(1)}, path)
    elif kind == "other network":
        torch.save({"layer.weight": torch.zeros(3)}, path)
    elif kind == "small sam":
        torch.save(small_sam().state_dict(), path)
    elif kind == "encoder only":
        torch.save(vit_b_encoder_only(), path)
    elif kind == "vit_l":
        torch.save({"image_encoder.patch_embed.proj.weight": torch.zeros(1024, 3, 16, 16)}, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "damaged"),
        ("empty", "damaged"),
        ("cut", "damaged"),
        ("pickle", "damaged, or holds Python objects"),
        ("objects", "Python objects besides tensors"),
        ("list", "must be a state_dict, tensors by their names, not a list"),
        ("numbers", "must be a state_dict, tensors by their names"),
        ("other network", "no encoder of theirs"),
        ("small sam", "no encoder of theirs"),
        ("encoder only", "must hold all weights of SAM's vit_b"),
        ("vit_l", "must hold vit_b weights to be sam_vit_b, not vit_l"),
    ],
)
def test_a_bad_checkpoint_is_named_and_refused(
    kind: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    write(kind, path)
    with pytest.raises(InputRejected, match=message) as caught:
        load_teacher(f"sam_vit_b:{path}")
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "evil").exists()


def test_whatever_a_damaged_file_makes_the_unpickler_do_it_is_called_damaged(tmp_path: Path) -> None:
    """torch's older form is read byte by byte: a flipped one leads to a dozen kinds of exception."""
    path, draw = tmp_path / "weights.pth", random.Random(0)
    torch.save(vit_b_encoder_only(), path, _use_new_zipfile_serialization=False)
    sound, damaged = path.read_bytes(), 0
    for _ in range(200):
        content = bytearray(sound)
        content[draw.randrange(1000)] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        try:
            checkpoints.read_state(path)
        except InputRejected:
            damaged += 1
    assert damaged > 50
    path.write_bytes(b"\x80\x80\x80")
    with pytest.raises(InputRejected, match="must be a torch checkpoint, and is damaged"):
        checkpoints.read_state(path)


@pytest.mark.parametrize(
    ("name", "error", "message", "code"),
    [
        ("sam_vit_x", UsageError, "teacher must be tiny, sam_vit_b", 2),
        ("sam_vit_b:/nowhere/sam.pth", UsageError, "/nowhere/sam.pth is no file", 2),
        ("/nowhere/sam.pth", UsageError, "/nowhere/sam.pth is no file", 2),
        ("sam_vit_b", UsageError, "samdistill teacher fetch sam_vit_b.*sam_vit_b_01ec64.pth", 2),
        ("medsam", UsageError, "medsam_vit_b.pth.*github.com/bowang-lab", 2),
        ("tiny:/x.safetensors", UsageError, "/x.safetensors is no file. Name weights that", 2),
        ("tiny:", UsageError, "a path must follow the colon of 'tiny:'; without one, write tiny", 2),
        ("sam_vit_b:", UsageError, "a path must follow the colon of 'sam_vit_b:'", 2),
    ],
)
def test_a_teacher_that_is_not_there_says_what_to_do(
    name: str, error: type[SamdistillError], message: str, code: int
) -> None:
    with pytest.raises(error, match=message) as caught:
        load_teacher(name)
    assert caught.value.exit_code == code


@pytest.mark.parametrize("prefix", ["", "sam_vit_b:"])
def test_weights_that_are_medsams_by_their_name_get_no_other_preprocessing(
    prefix: str, tmp_path: Path
) -> None:
    path = tmp_path / "MedSAM_vit_b.pth"
    torch.save(vit_b_encoder_only(), path)
    with pytest.raises(UsageError, match=f"must be named medsam:{path} to get MedSAM's preprocessing"):
        load_teacher(f"{prefix}{path}")
    with pytest.raises(InputRejected, match="must hold all weights of SAM's vit_b"):
        load_teacher(f"medsam:{path}")


@pytest.mark.parametrize("device", ["cuda:9", "tpu", "gpu"])
def test_a_device_that_cannot_be_had_has_exit_code_6(device: str) -> None:
    with pytest.raises(DeviceUnavailable) as caught:
        load_teacher("sam_vit_b", device)
    assert caught.value.exit_code == 6


def test_a_damaged_file_in_the_cache_is_noticed_by_its_hash(empty_cache: Path) -> None:
    empty_cache.mkdir(parents=True)
    (empty_cache / "sam_vit_b_01ec64.pth").write_bytes(b"half a file")
    with pytest.raises(InputRejected, match="must have the SHA-256 ec2df62732"):
        load_teacher("sam_vit_b")
    with pytest.raises(InputRejected, match="must have the SHA-256 ec2df62732"):
        checkpoints.fetch("sam_vit_b")


class Response(io.BytesIO):
    headers: dict[str, str] = {}  # noqa: RUF012


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[str]:
    asked: list[str] = []

    def urlopen(url: str, timeout: float) -> Response:
        asked.append(url)
        response = Response(content)
        response.headers = {"Content-Length": str(len(content))}
        return response

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def test_fetch_takes_the_official_address_and_tells_progress(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_cache: Path
) -> None:
    content = bytes(3_000_000)
    (tmp_path / "content").write_bytes(content)
    right = checkpoints.known("sam_vit_b").__class__(
        "vit_b",
        "sam_vit_b_01ec64.pth",
        "page",
        checkpoints.known("sam_vit_b").url,
        sha256_file(tmp_path / "content"),
        3,
    )
    monkeypatch.setitem(checkpoints.KNOWN, "sam_vit_b", right)
    asked = serve(monkeypatch, content)
    told: list[tuple[int, int]] = []
    path = checkpoints.fetch("sam_vit_b", progress=lambda done, total: told.append((done, total)))
    assert path == empty_cache / "sam_vit_b_01ec64.pth"
    assert path.read_bytes() == content
    assert told[-1] == (3_000_000, 3_000_000)
    assert len(told) >= 3
    assert asked == ["https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth"]
    checkpoints.fetch("sam_vit_b")
    assert len(asked) == 1


def test_fetch_keeps_nothing_of_a_file_with_another_hash(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    serve(monkeypatch, b"<html>a proxy's login page</html>")
    with pytest.raises(InputRejected, match=r"^what https.*must have the SHA-256.*nothing was kept"):
        checkpoints.fetch("sam_vit_b")
    assert list(empty_cache.iterdir()) == []


@pytest.mark.parametrize(
    ("trouble", "error", "message"),
    [
        (None, DeviceUnavailable, "the connection ended after 4 of 100 bytes.*Get sam_vit_b_01ec64.pth"),
        (http.client.IncompleteRead(b"x", 9), DeviceUnavailable, "cannot be reached"),
        (http.client.BadStatusLine("x"), DeviceUnavailable, "cannot be reached"),
        (ssl.SSLError("bad record"), DeviceUnavailable, "cannot be reached.*Get sam_vit_b_01ec64.pth"),
        (OSError(errno.ENOSPC, "No space left on device"), UsageError, "cannot be written: No space.*XDG_"),
    ],
)
def test_a_download_that_breaks_off_says_why_and_leaves_nothing(
    trouble: Exception | None,
    error: type[SamdistillError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    empty_cache: Path,
) -> None:
    class Breaking(Response):
        headers = {"Content-Length": "100"}  # noqa: RUF012

        def read(self, size: int | None = -1, /) -> bytes:
            content = super().read(size)
            if not content and trouble is not None:
                raise trouble
            return content

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Breaking(b"half"))
    with pytest.raises(error, match=message):
        checkpoints.fetch("sam_vit_b")
    assert list(empty_cache.iterdir()) == []


def test_what_killed_downloads_left_goes_and_two_do_not_fetch_at_once(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    empty_cache.mkdir(parents=True)
    killed, other = (empty_cache / f".sam_vit_{x}.pth.0123abcd.tmp" for x in ("b_01ec64", "l_0b3195"))
    killed.write_bytes(b"half")
    other.write_bytes(b"half")
    serve(monkeypatch, b"wrong")
    with locked(empty_cache, "in use"), pytest.raises(UsageError, match="another process is fetching"):
        checkpoints.fetch("sam_vit_b")
    assert killed.exists()
    with pytest.raises(InputRejected, match="nothing was kept"):
        checkpoints.fetch("sam_vit_b")
    assert list(empty_cache.iterdir()) == [other]


def test_an_unreachable_address_says_how_to_bring_the_file_by_hand(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    def urlopen(url: str, timeout: float) -> Response:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(DeviceUnavailable, match=r"no route to host.*Get sam_vit_b_01ec64.pth") as caught:
        checkpoints.fetch("sam_vit_b")
    assert str(empty_cache) in str(caught.value)
    with pytest.raises(UsageError, match="no direct address"):
        checkpoints.fetch("medsam")


def test_weights_are_named_by_their_values_alone(tmp_path: Path) -> None:
    state = small_sam().state_dict()
    torch.save(state, tmp_path / "a.pth")
    again = torch.load(tmp_path / "a.pth", weights_only=True)
    assert state_sha256(dict(reversed(again.items()))) == state_sha256(state)
    again["mask_decoder.iou_token.weight"][0, 0] += 1e-3
    assert state_sha256(again) != state_sha256(state)
