"""The embedding cache: hits without the encoder, eviction, killed and concurrent writers, a full disk."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the teacher needs the extra train")

from small_sam import small_teacher  # noqa: E402

from samdistill.errors import InputRejected, UsageError  # noqa: E402
from samdistill.prompts import Prompts  # noqa: E402
from samdistill.teacher import Embedding, Teacher  # noqa: E402
from samdistill.teacher.cache import EmbeddingCache, decode_entry, encode_entry, entry_key  # noqa: E402
from samdistill.teacher.proposal_cache import FOLDER, ProposalCache  # noqa: E402
from samdistill.teacher.propose import ProposeConfig  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return small_teacher()


def images(n: int, size: tuple[int, int] = (40, 60)) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for _ in range(n)]


def test_a_hit_runs_no_encoder(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (image,) = images(1)
    (first,) = EmbeddingCache(tmp_path).embed(teacher, [image])
    monkeypatch.setattr(teacher, "embed", lambda _: pytest.fail("the encoder ran"))
    cache = EmbeddingCache(tmp_path)
    (second,) = cache.embed(teacher, [image])
    assert torch.equal(first.features, second.features)
    assert (
        (second.image_size, second.input_size)
        == (first.image_size, first.input_size)
        == ((40, 60), (85, 128))
    )
    assert (cache.statistics.hits, cache.statistics.misses) == (1, 0)


def test_a_cached_embedding_segments_as_a_fresh_one(teacher: Teacher, tmp_path: Path) -> None:
    """What rounding to fp16 does to the logits is far below what separates masks."""
    (image,) = images(1)
    cached = EmbeddingCache(tmp_path).embed(teacher, [image])
    box = [[Prompts(box=np.array([5, 5, 50, 30], np.float32))]]
    exact, _ = teacher.decode(teacher.embed([image]), box)
    rounded, _ = teacher.decode(cached, box)
    assert (exact - rounded).abs().max() < 0.01 * exact.abs().max()


def test_another_image_other_weights_and_other_preprocessing_have_other_keys(teacher: Teacher) -> None:
    one, two = images(2)
    other = small_teacher(seed=1)
    stretched = small_teacher()
    stretched.preprocessing = "medsam"
    turned = np.ascontiguousarray(one.reshape(60, 40, 3))
    keys = [entry_key(teacher, one), entry_key(teacher, two), entry_key(teacher, turned)]
    keys += [entry_key(other, one), entry_key(stretched, one)]
    assert len(set(keys)) == 5
    assert entry_key(small_teacher(), one.copy()) == keys[0]


def test_an_entry_is_read_back_bit_by_bit_and_any_damage_is_noticed() -> None:
    features = torch.randn(4, 3, 2).half().float()
    content = encode_entry(Embedding(features, (30, 20), (128, 85)))
    back = decode_entry(content, CPU)
    assert back is not None
    assert torch.equal(back.features, features)
    assert (back.image_size, back.input_size) == ((30, 20), (128, 85))
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        assert decode_entry(bytes(damaged), CPU) is None
    for length in range(len(content)):
        assert decode_entry(content[:length], CPU) is None


def test_a_damaged_entry_is_made_anew(teacher: Teacher, tmp_path: Path) -> None:
    (image,) = images(1)
    (first,) = EmbeddingCache(tmp_path).embed(teacher, [image])
    (path,) = tmp_path.glob("??/*.bin")
    path.write_bytes(path.read_bytes()[:-1])
    cache = EmbeddingCache(tmp_path)
    (again,) = cache.embed(teacher, [image])
    assert torch.equal(again.features, first.features)
    assert cache.statistics.misses == 1
    assert decode_entry(path.read_bytes(), CPU) is not None


def test_the_longest_unused_entries_go_first(teacher: Teacher, tmp_path: Path) -> None:
    pictures = images(4)
    EmbeddingCache(tmp_path).embed(teacher, pictures[:3])
    paths = [tmp_path / (k := entry_key(teacher, p))[:2] / f"{k}.bin" for p in pictures]
    for age, path in zip((300, 100, 200), paths[:3], strict=True):
        os.utime(path, (time.time() - age, time.time() - age))
    size = paths[0].stat().st_size
    cache = EmbeddingCache(tmp_path, max_bytes=3 * size)
    cache.embed(teacher, [pictures[0]])  # a hit makes the oldest the newest
    cache.embed(teacher, [pictures[3]])
    assert [path.exists() for path in paths] == [True, True, False, True]
    assert cache.statistics.evicted == 1


@pytest.mark.parametrize("max_bytes", [None, 10**9])
def test_what_a_killed_writer_left_is_swept_up_once_it_is_old(
    teacher: Teacher, tmp_path: Path, max_bytes: int | None
) -> None:
    folder = tmp_path / "ab"
    folder.mkdir()
    fresh, stale = folder / ".x.bin.1.tmp", folder / ".y.bin.2.tmp"
    fresh.write_bytes(b"x")
    stale.write_bytes(b"y")
    os.utime(stale, (time.time() - 7200, time.time() - 7200))
    EmbeddingCache(tmp_path, max_bytes=max_bytes).embed(teacher, images(1))
    assert fresh.exists()
    assert not stale.exists()


def test_what_a_killed_writer_left_of_proposals_is_swept_up_too(teacher: Teacher, tmp_path: Path) -> None:
    (tmp_path / FOLDER / "ab").mkdir(parents=True)
    stale = tmp_path / FOLDER / "ab" / ".y.bin.2.tmp"
    stale.write_bytes(b"y")
    os.utime(stale, (time.time() - 7200, time.time() - 7200))
    (image,) = images(1)
    cache = ProposalCache(tmp_path, teacher, ProposeConfig(points_per_side=1))
    cache.propose(image, lambda: teacher.embed([image])[0])
    assert not stale.exists()


def test_a_large_cache_is_not_looked_through_at_every_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write in a folder of N entries would look at N files, of all writes together N squared."""
    looks = []
    evict = EmbeddingCache._evict
    monkeypatch.setattr(EmbeddingCache, "_evict", lambda self, most: looks.append(1) or evict(self, most))
    monkeypatch.setattr(
        "samdistill.teacher.cache.write_bytes", lambda path, content: path.write_bytes(content)
    )
    one = Embedding(torch.zeros(1, 1, 1), (1, 1), (1, 1))
    size = len(encode_entry(one))
    cache = EmbeddingCache(tmp_path, max_bytes=200 * size)
    for number in range(600):
        cache._write(f"{number % 16:02x}{number:06d}", one)
        assert number - cache.statistics.evicted < 200 + 200 // 20, "it stays below its limit"
    assert 180 <= len(list(tmp_path.glob("??/*.bin"))) <= 210
    assert len(looks) <= 100


def test_a_full_disk_is_told_and_leaves_no_half_entry(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        EmbeddingCache(tmp_path).embed(teacher, images(1))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be made"):
        EmbeddingCache(tmp_path / "file" / "cache")


def test_an_embedding_that_fp16_cannot_hold_is_refused_and_not_kept(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fresh,) = teacher.embed(images(1))
    large = Embedding(fresh.features * 1e6, fresh.image_size, fresh.input_size)
    monkeypatch.setattr(teacher, "embed", lambda _: [large])
    with pytest.raises(InputRejected, match="must be finite as fp16"):
        EmbeddingCache(tmp_path).embed(teacher, images(1))
    assert not list(tmp_path.rglob("*.bin"))


def test_entries_that_cannot_be_read_are_told(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image,) = images(1)
    proposals = ProposalCache(tmp_path, teacher, ProposeConfig(points_per_side=1))
    EmbeddingCache(tmp_path).embed(teacher, [image])
    proposals.propose(image, lambda: teacher.embed([image])[0])

    def refuse(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UsageError, match=r"the embedding cache .* cannot be read: Permission denied"):
        EmbeddingCache(tmp_path).embed(teacher, [image])
    with pytest.raises(UsageError, match=r"the cache of proposals .* cannot be read: Permission denied"):
        proposals.propose(image, lambda: teacher.embed([image])[0])


def test_entries_that_may_not_go_stay(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    EmbeddingCache(tmp_path).embed(teacher, images(1))
    (found,) = tmp_path.glob("??/*.bin")
    os.utime(found, (time.time() - 100,) * 2)
    unlink = Path.unlink

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self == found:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    cache = EmbeddingCache(tmp_path, max_bytes=found.stat().st_size)
    cache.embed(teacher, images(2))
    assert list(tmp_path.glob("??/*.bin")) == [found]
    assert cache.statistics.evicted == 1
    found.write_bytes(b"damaged")
    assert cache.read(entry_key(teacher, images(1)[0]), CPU) is None


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import numpy as np
from small_sam import small_teacher
from samdistill.teacher.cache import EmbeddingCache

def stop(descriptor):
    print("writing", flush=True)
    import time
    time.sleep(60)

os.fsync = stop  # the moment between the last byte and the rename
image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
EmbeddingCache(Path(sys.argv[1])).embed(small_teacher(), [image])
"""


def test_kill_9_in_the_middle_of_a_write_leaves_a_cache_that_works(teacher: Teacher, tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), here], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.glob("??/*.bin")) == []
    assert len(list(tmp_path.glob("??/.*.tmp"))) == 1
    cache = EmbeddingCache(tmp_path)
    cache.embed(teacher, images(1))
    assert cache.statistics.misses == 1
    assert len(list(tmp_path.glob("??/*.bin"))) == 1


def work(folder: Path, order: list[int], results: multiprocessing.Queue[list[float]]) -> None:
    torch.set_num_threads(1)
    teacher, pictures = small_teacher(), images(6)
    sums = {}
    for _ in range(3):
        for i in order:
            (embedding,) = EmbeddingCache(folder, max_bytes=60_000).embed(teacher, [pictures[i]])
            sums[i] = float(embedding.features.sum())
    results.put([sums[i] for i in range(6)])


def test_two_processes_share_a_cache_that_is_too_small_for_them(teacher: Teacher, tmp_path: Path) -> None:
    """They read, write and evict each other's entries all the time; every embedding is right."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[list[float]] = context.Queue()
    orders = ([0, 1, 2, 3, 4, 5], [5, 3, 1, 4, 2, 0])
    workers = [context.Process(target=work, args=(tmp_path, order, results)) for order in orders]
    for worker in workers:
        worker.start()
    answers = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    expected = [float(e.features.half().float().sum()) for e in teacher.embed(images(6))]
    for answer in answers:
        np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-2)
    assert sum(path.stat().st_size for path in tmp_path.glob("??/*")) < 120_000


def test_fill_skips_what_is_there(teacher: Teacher, tmp_path: Path) -> None:
    pictures = images(3)
    cache = EmbeddingCache(tmp_path)
    cache.embed(teacher, pictures[:1])
    told: list[int] = []
    assert cache.fill(teacher, [lambda p=p: p for p in pictures], progress=told.append) == 2
    assert told == [1, 2, 3]
    assert cache.fill(teacher, [lambda p=p: p for p in pictures]) == 0


def test_fill_makes_a_damaged_entry_again(teacher: Teacher, tmp_path: Path) -> None:
    (picture,) = images(1)
    cache = EmbeddingCache(tmp_path)
    cache.fill(teacher, [lambda: picture])
    (path,) = tmp_path.glob("??/*.bin")
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.fill(teacher, [lambda: picture]) == 1
    assert cache.read(entry_key(teacher, picture), CPU) is not None


def test_fill_does_not_evict_what_it_found(teacher: Teacher, tmp_path: Path) -> None:
    *found, other, new = images(4)
    EmbeddingCache(tmp_path).fill(teacher, [lambda p=p: p for p in (*found, other)])
    bytes_ = [path.stat().st_size for path in tmp_path.glob("??/*.bin")]
    for age, picture in ((2000, found[0]), (2000, found[1]), (1000, other)):
        path = EmbeddingCache(tmp_path)._path(entry_key(teacher, picture))
        os.utime(path, (time.time() - age,) * 2)
    cache = EmbeddingCache(tmp_path, max_bytes=sum(bytes_))
    assert cache.fill(teacher, [lambda p=p: p for p in (*found, new)]) == 1
    held = [cache.read(entry_key(teacher, picture), CPU) is not None for picture in (*found, new, other)]
    assert held == [True, True, True, False]
