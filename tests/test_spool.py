"""What is spooled comes back as it was, and is not in memory meanwhile."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from colour_student import ColourStudent
from small_sam import small_teacher

from samdistill import phantoms
from samdistill.errors import UsageError
from samdistill.export.parity import StudentReference
from samdistill.export.pieces import teacher_record
from samdistill.export.spool import Spool
from samdistill.export.teacher_parity import TeacherReference

SIZE, IMAGES = (480, 640), 4


def test_things_come_back_in_order_by_number_and_as_often_as_asked() -> None:
    spool = Spool[dict[str, object]]()
    things = [{"number": i, "masks": np.arange(50_000).reshape(2, 25_000) % (i + 2) == 0} for i in range(4)]
    for thing in things:
        spool.append(thing)
        assert spool[-1]["number"] == thing["number"]  # reading in between moves no place
    assert len(spool) == 4
    for found in (list(spool), list(spool), [spool[i] for i in range(4)]):
        for got, put in zip(found, things, strict=True):
            assert got["number"] == put["number"]
            np.testing.assert_array_equal(got["masks"], put["masks"])


def test_a_full_disk_is_said_with_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("r+b", buffering=0) as full:
        monkeypatch.setattr("tempfile.TemporaryFile", lambda: full)
        with pytest.raises(UsageError, match=r"No space left on device\. Free space, or name .* TMPDIR"):
            Spool[object]().append(np.random.default_rng(0).random(100_000))


def test_the_gates_answers_about_large_images_take_no_memory() -> None:
    def images() -> object:
        for index in range(IMAGES):
            one = phantoms.make("endoscopy", seed=3, index=index, size=SIZE)
            yield one.image, (one.masks, np.zeros(SIZE, np.bool_))

    teacher = small_teacher()
    tracemalloc.start()
    try:
        held = [
            TeacherReference(teacher, teacher_record(teacher, "none"), images()),
            StudentReference(ColourStudent(), images(), size=64, thresholds=(0.5, 0.5), multi_label=True),
        ]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 2 * SIZE[0] * SIZE[1]  # bytes: of all of them less than two masks of one
    assert [len(one.answers) for one in held] == [IMAGES, 2 + IMAGES]
