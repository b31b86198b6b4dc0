"""Runs of `samdistill infer` that are interrupted, resumed, shared out, or fed with damage."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import colours, rewrite
from test_inference import bomb, save, segment, segment_all, tree

from samdistill.errors import UsageError
from samdistill.inference import Outcome, Shard, gather, segment_files
from samdistill.inference.workers import share_threads
from samdistill.io.images import read_mask
from samdistill.predictor import Predictor

NOISE = np.random.default_rng(0)


def fill(folder: Path, count: int) -> None:
    for number in range(count):
        save(folder / f"{number:03}.png", colours(64 + number % 3, 64, seed=number))


def masks(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in tree(out) if name.endswith(".png")}


FAULTS = """
import resource, sys, threading
import numpy as np
from samdistill.inference.workers import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def work():
    for _ in range(50):
        [np.ones(1 << 20, np.uint8) for _ in range(8)]
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver()[0], reason="glibc alone has it")
def test_memory_that_is_kept_is_not_cleared_again() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    given_back, kept = faults("give back"), faults("keep")
    assert kept < given_back - 50 * 1024  # of 50 x 8 MiB, two pages of three at the least


def test_the_precision_that_is_named_computes_and_the_audit_says_so(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    def add_low(values: dict[str, Any]) -> None:
        values["engines"].insert(0, {**values["engines"][0], "precision": "fp16"})

    rewrite(tiny_bundle, add_low)
    save(tmp_path / "in" / "a.png", colours())
    out = tmp_path / "out"
    command = [sys.executable, "-m", "samdistill", "infer", str(tiny_bundle), str(tmp_path / "in"), "--out"]
    for words in ([], ["--precision", "fp32"]):
        subprocess.run([*command, str(out), *words], check=True, capture_output=True)
    audit = [json.loads(line) for line in (out / "audit.jsonl").read_text().splitlines()]
    assert [one["engines"]["student"].split()[1] for one in audit] == ["fp16", "fp32"]


def test_workers_and_batches_change_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    fill(tmp_path / "in", 23)
    found = []
    for workers, batch in ((1, 1), (3, 8), (2, 4)):
        out = tmp_path / f"{workers}-{batch}"
        records = segment(tiny_bundle, tmp_path / "in", out, workers=workers, batch=batch)
        assert [record.input for record in records] == [f"{n:03}.png" for n in range(23)]
        lines = (out / "results.jsonl").read_text().splitlines()
        assert [json.loads(line)["input"] for line in lines] == [record.input for record in records]
        found.append(masks(out))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 23


def test_one_percent_of_damage_changes_nothing_for_the_others(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    fill(folder, 60)
    good = (folder / "007.png").read_bytes()
    (folder / "007.png").write_bytes(good[:200])
    (folder / "031.png").write_bytes(b"")
    bomb(folder / "044.png")
    (folder / "045.dcm").write_bytes(good)
    (folder / "046.nii.gz").write_bytes(good)
    save(folder / "047.tif", np.zeros((8, 8), np.uint16))
    (folder / "046.png").unlink()
    (folder / "045.png").unlink()
    (folder / "047.png").unlink()
    summary, records = segment_all(Predictor.load(tiny_bundle), gather([str(folder)], out), out, workers=2)
    failed = [Path(record.input).name for record in records if record.status == "failed"]
    assert failed == ["007.png", "031.png", "044.png", "045.dcm", "046.nii.gz", "047.tif"]
    assert (summary.total, summary.done, summary.failed) == (60, 54, 6)
    predictor = Predictor.load(tiny_bundle)
    for number in (0, 6, 8, 30, 43, 59):
        wanted = predictor.predict(colours(64 + number % 3, 64, seed=number)).labels()
        np.testing.assert_array_equal(read_mask(out / f"{number:03}.png"), wanted)
    assert not [
        name for name in tree(out) if name.split(".")[0] in ("007", "031", "044", "045", "046", "047")
    ]


def test_names_that_are_no_text_and_pipes_stop_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder / "a.png")
    odd = folder / os.fsdecode(b"caf\xe9.png")  # as Latin-1 has it
    save(odd)
    for name in ("pipe.png", "pipe.avi", "pipe"):
        os.mkfifo(folder / name)
    command = [sys.executable, "-m", "samdistill", "infer", str(tiny_bundle), str(folder), "--out", str(out)]
    words = ["--measurements", "--overlay"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 3, done.stderr
    assert "input 3 must be a file" in done.stderr
    assert "2 of 4 inputs failed" in done.stderr
    assert (out / odd.name).read_bytes() == (out / "a.png").read_bytes()
    assert "\ncaf\\udce9.png," in (out / "measurements.csv").read_text(encoding="utf-8")


def test_whatever_a_file_does_to_the_network_stays_its_own_matter(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "in", 12)
    predictor = Predictor.load(tiny_bundle)
    answer = Predictor.predict_batch

    def fails(self: Predictor, images: list[np.ndarray], *words: object, **options: Any) -> Any:
        if any((image == colours(64 + 5 % 3, 64, seed=5)).all() for image in images if image.shape[0] == 66):
            raise RuntimeError("the runtime gave up")
        return answer(self, images, *words, **options)

    monkeypatch.setattr(Predictor, "predict_batch", fails)
    out = tmp_path / "out"
    summary, records = segment_all(predictor, gather([str(tmp_path / "in")], out), out, workers=2)
    assert [one.input for one in records if one.status == "failed"] == ["005.png"]
    assert (summary.done, summary.failed) == (11, 1)


def test_resuming_redoes_what_changed_and_nothing_else(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    fill(folder, 8)
    segment(tiny_bundle, folder, out)
    before = {name: (out / name).stat().st_mtime_ns for name in masks(out)}

    def redone(**options: bool) -> tuple[list[str], int]:
        predictor = Predictor.load(tiny_bundle)
        summary, records = segment_all(predictor, gather([str(folder)], out), out, resume=True, **options)
        assert [record.input for record in records] == [f"{n:03}.png" for n in range(8)]
        lines = (out / "results.jsonl").read_text().splitlines()
        assert [json.loads(line)["input"] for line in lines] == [record.input for record in records]
        now = {name: (out / name).stat().st_mtime_ns for name in before}
        changed = [name for name in before if now[name] != before[name]]
        before.update(now)
        return changed, summary.kept

    assert redone() == ([], 8)
    save(folder / "003.png", colours(64, 64, seed=99))  # another picture
    (out / "005.png").write_bytes(b"somebody's")  # another mask
    (out / "006.png").unlink()  # none
    assert redone()[0] == ["003.png", "005.png", "006.png"]
    np.testing.assert_array_equal(
        read_mask(out / "003.png"), Predictor.load(tiny_bundle).predict(colours(64, 64, seed=99)).labels()
    )
    assert redone(contours=True) == ([f"{n:03}.png" for n in range(8)], 0)  # other options
    rewrite(tiny_bundle, lambda values: values.update(name="another"))
    assert redone(contours=True) == ([f"{n:03}.png" for n in range(8)], 0)  # another bundle
    assert redone(contours=True) == ([], 8)


def test_resuming_redoes_what_other_versions_of_the_readers_made(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that was mended may give other pixels; and a DICOM UID is of one content."""
    folder, out = tmp_path / "in", tmp_path / "out"
    fill(folder, 2)
    predictor = Predictor.load(tiny_bundle)
    for versions, kept in (({"pydicom": "3"}, 0), ({"pydicom": "3"}, 2), ({"pydicom": "4"}, 0)):
        monkeypatch.setattr("samdistill.inference.jobs._versions", lambda versions=versions: versions)
        assert segment_all(predictor, gather([str(folder)], out), out, resume=True)[0].kept == kept


def test_an_old_record_takes_no_mask_of_a_file_that_is_kept(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    fill(folder, 2)
    predictor = Predictor.load(tiny_bundle)
    segment_all(predictor, gather([str(folder)], out), out)
    first, second = (json.loads(line) for line in (out / "results.jsonl").read_text().splitlines())
    first |= {"files": second["files"], "input_sha256": "0" * 64}  # as where both masks were empty, long ago
    (out / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (first, second)))
    summary, _ = segment_all(predictor, gather([str(folder)], out), out, resume=True)
    assert (summary.kept, summary.done) == (1, 1)
    assert all((out / name).is_file() for name in ("000.png", "001.png"))


def test_shards_share_the_files_out_and_keep_their_own_lists(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    fill(folder, 7)
    predictor = Predictor.load(tiny_bundle)
    for index in (1, 2, 3):
        shard = Shard.parse(f"{index}/3")
        segment_all(predictor, gather([str(folder)], out), out, shard=shard)
    assert len(masks(out)) == 7
    lists = sorted(out.glob("results*.jsonl"))
    assert [path.name for path in lists] == [f"results-{n}-of-3.jsonl" for n in (1, 2, 3)]
    assert sum(len(path.read_text().splitlines()) for path in lists) == 7
    summary, _ = segment_all(predictor, gather([str(folder)], out), out, resume=True)
    assert summary.kept == 7
    assert [path.name for path in out.glob("results*.jsonl")] == ["results.jsonl"]
    for index in (1, 2):  # of a run over all, a shard keeps what still holds; the old list would not hold
        summary, _ = segment_all(
            predictor, gather([str(folder)], out), out, shard=Shard.parse(f"{index}/2"), resume=True
        )
        assert summary.kept == summary.total
        assert not (out / "results.jsonl").exists()
    for text in ("0/3", "4/3", "1", "a/b", "-1/3", "1/0"):
        with pytest.raises(UsageError, match="shard must be i/n"):
            Shard.parse(text)


def test_shards_keep_what_other_files_have_moved_to_another_shard(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    fill(folder, 4)
    predictor = Predictor.load(tiny_bundle)
    for first in (False, True):
        if first:
            save(folder / "!.png")  # each of the others is the other shard's now
        parts = [
            segment_all(predictor, gather([str(folder)], out), out, shard=Shard(index, 2), resume=True)[0]
            for index in (1, 2)
        ]
    assert [part.kept for part in parts] == [2, 2]
    assert segment_all(predictor, gather([str(folder)], out), out, resume=True)[0].kept == 5
    assert not list(out.glob(".*"))


def test_no_list_of_other_shards_stays_beside_newer_ones(tiny_bundle: Path, tmp_path: Path) -> None:
    """Whoever joins measurements*.csv would count twice, and what is no more."""
    folder, out = tmp_path / "in", tmp_path / "out"
    fill(folder, 5)
    predictor = Predictor.load(tiny_bundle)

    def lists(*shards: str, **options: Any) -> tuple[set[str], int]:
        kept = 0
        for text in shards:
            part = None if text == "all" else Shard.parse(text)
            kept += segment_all(
                predictor,
                gather([str(folder)], out),
                out,
                shard=part,
                measurements=True,
                contours=True,
                **options,
            )[0].kept
        suffixes = (".csv", ".json", ".jsonl", ".partial")
        return {p.name for p in out.iterdir() if p.suffix in suffixes and "audit" not in p.name}, kept

    def names(*stems: str) -> set[str]:
        return {
            f"{kind}{stem}.{suffix}"
            for stem in stems
            for kind, suffix in (("results", "jsonl"), ("measurements", "csv"), ("coco", "json"))
        }

    assert lists("1/3", "2/3", "3/3") == (names("-1-of-3", "-2-of-3", "-3-of-3"), 0)
    found, kept = lists("1/2", "2/2", resume=True)
    assert kept == 5
    assert {name for name in found if not name.startswith(".")} == names("-1-of-2", "-2-of-2")
    assert lists("all", resume=True) == (names(""), 5)
    assert lists("all", resume=True) == (names(""), 5)


def test_two_runs_into_one_folder_are_kept_apart(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    fill(folder, 4)
    predictor = Predictor.load(tiny_bundle)
    sources = gather([str(folder)], out)
    seen = []

    def start(part: Shard | None) -> str:
        try:
            segment_files(predictor, sources, out, shard=part)
        except UsageError as error:
            return str(error)
        return "done"

    def meanwhile(outcome: Outcome) -> None:
        if not seen:
            before = masks(out)
            seen.extend(start(part) for part in (None, Shard(1, 2), Shard(2, 2)))
            assert before.items() <= masks(out).items()

    segment_files(predictor, sources, out, tell=meanwhile)
    assert ["two runs at once" in text for text in seen] == [True, True, True]
    assert len((out / "results.jsonl").read_text().splitlines()) == 4
    seen.clear()
    segment_files(predictor, sources, out, shard=Shard(1, 2), tell=meanwhile)
    assert ["two runs at once" in text for text in seen] == [True, True, False]  # the other shard may
    assert start(None) == "done"


def test_lists_that_a_killed_run_left_half_go_and_nothing_else(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder / "a.png", colours(40, 40))
    segment_all(Predictor.load(tiny_bundle), gather([str(folder)], out), out)
    half = [
        out / f".{name}.0123abcd.tmp" for name in ("results.jsonl", "coco.json", "measurements.csv", "a.png")
    ]
    half.append(out / ".coco.json.0123abcd.tmp.annotations")
    mine = out / ".notes.txt.0123abcd.tmp"
    for path in (*half, mine):
        path.write_text("half")
    (folder / "a.png").unlink()
    save(folder / "a.png", colours(40, 40, seed=1))
    segment_all(Predictor.load(tiny_bundle), gather([str(folder)], out), out, resume=True)
    assert list(out.glob(".*.tmp*")) == [mine]


def test_cores_are_shared_between_files_and_the_network() -> None:
    assert share_threads(1, "cpu", 4) == (1, 4)
    assert share_threads(500, "cpu", 4) == (4, 1)
    assert share_threads(500, "cpu", 32) == (8, 4)
    assert share_threads(500, "cuda", 8) == (4, 8)
    with pytest.raises(UsageError, match="threads must be at least 1"):
        share_threads(1, "cpu", 0)


def test_ctrl_c_leaves_complete_outputs_that_are_resumed(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder / "000.png", colours(200, 200))
    for number in range(1, 150):
        os.link(folder / "000.png", folder / f"{number:03}.png")
    command = [sys.executable, "-m", "samdistill", "infer", str(tiny_bundle), str(folder), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--overlay"],
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not all((out / f"{number:03}.png").exists() for number in range(5)):  # written in any order
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.startswith("samdistill: interrupted; ")
    assert err.count("\n") == 1
    files = tree(out)
    assert not [name for name in files if name.endswith(".tmp")]
    assert not (out / "results.jsonl").exists()
    done = {name for name in files if name.endswith(".png") and "/" not in name}
    assert 5 <= len(done) < 150
    assert {name.removeprefix("overlays/") for name in files if name.startswith("overlays/")} == done
    _, records = segment_all(
        Predictor.load(tiny_bundle), gather([str(folder)], out), out, resume=True, overlay=True
    )
    assert [record.status for record in records] == ["ok"] * 150


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np
from bundles import colours
from samdistill.inference import Options, gather, segment_files
from samdistill.io.images import read_mask, write_png
from samdistill.predictor import Predictor
import samdistill.runtime.onnxruntime, onnxruntime, samdistill.report.overlay, samdistill.io.contours

bundle, folder, out = map(Path, sys.argv[2:])
random.seed(1)
pictures = [colours(96, 96, seed=seed) for seed in (1, 2)]
pictures[1] = pictures[1][::-1].copy()

def child():
    options = Options(overlay=True, contours=True)
    predictor = Predictor.load(bundle, threads=1)
    segment_files(predictor, gather([str(folder)], out), out, options=options, resume=True, workers=2)

def fork():
    pid = os.fork()
    if pid == 0:
        child()
        os._exit(0)
    return pid

started = time.monotonic()
for number in range(30):
    write_png(folder / f"{number:02}.png", pictures[0])
os.waitpid(fork(), 0)
whole = time.monotonic() - started
right = [(out / "00.png").read_bytes()]
for path in out.rglob("*.png"):
    path.unlink()
for turn in range(20):
    for number in range(turn, 30, 7):  # some change between the runs
        write_png(folder / f"{number:02}.png", pictures[turn % 2])
    pid = fork()
    time.sleep(random.random() * whole)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for path in out.glob("[0-9]*.png"):
        content = path.read_bytes()
        if content not in right:
            assert len(right) == 1, f"turn {turn}: {path} is neither picture's mask"
            assert read_mask(path).shape == (96, 96)
            right.append(content)
    for path in [*out.glob("overlays/*.png"), *out.glob("contours/*.geojson")]:
        assert path.name.startswith(".") or path.stat().st_size > 100, path
_, status = os.waitpid(fork(), 0)
assert status == 0
predictor = Predictor.load(bundle, threads=1)
from samdistill.io.images import read_image
for path in sorted(folder.glob("*.png")):
    assert (read_mask(out / path.name) == predictor.predict(read_image(path)).labels()).all(), path
assert len((out / "results.jsonl").read_text().splitlines()) == 30
left = [str(path) for path in out.rglob(".*")]
assert not left, left
"""


def test_killed_at_twenty_random_moments_nothing_is_partial_or_stale(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """Every mask that is there is whole, and the run that ends at last has the present pictures' masks."""
    (tmp_path / "in").mkdir()
    words = [Path(__file__).parent, tiny_bundle, tmp_path / "in", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", KILLS, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_progress_says_how_many_images_a_second(tiny_bundle: Path, tmp_path: Path) -> None:
    """On a terminal a bar, elsewhere the last line; files kept from an earlier run do not count."""
    fill(tmp_path / "in", 12)
    command = [sys.executable, "-m", "samdistill", "infer", str(tiny_bundle), str(tmp_path / "in"), "--out"]
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*command, str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=theirs, text=True, check=True
    )
    os.close(theirs)
    shown = ""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(ours, 65536):
            shown += part.decode()
    os.close(ours)
    assert re.search(r"segmenting.*12/12.* \d+\.\d images/s", shown)
    assert re.search(r"12 of 12 files segmented .*, \d+\.\d images/s, see results.jsonl", done.stdout)
    again = subprocess.run(
        [*command, str(tmp_path / "out"), "--resume"], capture_output=True, text=True, check=True
    )
    assert "12 of them by an earlier run" in again.stdout
    assert "images/s" not in again.stdout


def test_no_test_can_reach_the_network() -> None:
    with pytest.raises(RuntimeError, match="must not use the network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(RuntimeError, match="must not use the network"):
        socket.getaddrinfo("example.org", 80)
