"""NIfTI: slices as they lie in the file, what is written lies where the input lies, damage has a message."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import nibabel
import numpy as np
import pytest

from samdistill.errors import InputRejected
from samdistill.evaluation import unseen
from samdistill.io import open_dataset, open_stack, read_image, read_mask, write_mask
from samdistill.io.check import check_data
from samdistill.io.nifti import NiftiStack, nifti_bytes
from samdistill.train.run import Run

RNG = np.random.default_rng(7)
SHAPE = (12, 10, 4)  # x, y, slices
AFFINE = np.array([[0.5, 0.1, 0, -10], [-0.1, 0.5, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1]])
PLACES = ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d")
PLACES += ("qoffset_x", "qoffset_y", "qoffset_z", "pixdim", "xyzt_units", "dim")


def volume(shape: tuple[int, ...] = SHAPE, dtype: Any = np.int16) -> np.ndarray:
    return RNG.integers(0, 200, shape).astype(dtype)


def save(path: Path, values: np.ndarray, *, kind: Any = nibabel.Nifti1Image, codes: tuple[int, int] = (2, 1),
         endianness: str = "<", **fields: Any) -> Path:  # fmt: skip
    affine = RNG.normal(size=(4, 4))
    affine[3] = 0, 0, 0, 1
    header = kind.header_class(endianness=endianness)
    header.set_data_dtype(values.dtype)
    image = kind(values, affine, header)
    image.header["descrip"] = b"Doering Janina"
    if "db_name" in image.header:
        image.header["db_name"] = b"Doering"
    if "unused_str" in image.header:
        image.header["unused_str"] = b"Doering"
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1], strip_shears=True)
    for key, value in fields.items():
        image.header[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("from_bytes", [False, True])
def test_slices_come_as_they_lie_in_any_order(tmp_path: Path, name: str, from_bytes: bool) -> None:
    values = volume()
    path = save(tmp_path / name, values)
    stack = open_stack(path, path.read_bytes() if from_bytes else None)
    assert (len(stack), stack.size, stack.format) == (4, (10, 12), "nifti")
    for index in (0, 3, 1, 2, 2):
        np.testing.assert_array_equal(stack.image(index), values[:, :, index].T)
    with pytest.raises(ValueError, match=r"index must be 0\.\.3, not 4"):
        stack.image(4)


def test_scaled_values_colours_and_two_dimensions_are_read(tmp_path: Path) -> None:
    image = nibabel.load(save(tmp_path / "s.nii", volume((12, 10))))
    image.header.set_slope_inter(2.0, -1000.0)
    nibabel.save(image, tmp_path / "scaled.nii")
    read = read_image(tmp_path / "scaled.nii")
    np.testing.assert_allclose(read, nibabel.load(tmp_path / "scaled.nii").get_fdata().T)
    colours = np.zeros((6, 5, 1), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["G"][2, 3, 0] = 9
    rgb = read_image(save(tmp_path / "rgb.nii", colours))
    assert (rgb.shape, rgb[3, 2].tolist(), rgb.sum()) == ((5, 6, 3), [0, 9, 0], 9)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("scaling", [(0, 0), (0, 7), (np.nan, 0), (np.nan, np.nan), (1, 0)])
def test_a_slope_of_0_or_none_scales_nothing(tmp_path: Path, dtype: Any, scaling: Any) -> None:
    """What most tools write into files that are not scaled (NIfTI-1: "if the scl_slope field is nonzero")."""
    values = volume(dtype=dtype)
    path = save(tmp_path / "s.nii", values)
    content = bytearray(path.read_bytes())
    struct.pack_into("<2f", content, 112, *scaling)
    path.write_bytes(content)
    read = open_stack(path).image(1)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, values[:, :, 1].T)


def test_the_spacing_is_in_millimetres_y_before_x(tmp_path: Path) -> None:
    pixdim = np.array([1, 0.5, 0.25, 3, 1, 1, 1, 1])
    for unit, factor in ((2, 1.0), (0, 1.0), (3, 0.001), (1, 1000.0)):
        path = save(tmp_path / f"{unit}.nii", volume(), pixdim=pixdim, xyzt_units=unit)
        assert open_stack(path).spacing_mm == pytest.approx((0.25 * factor, 0.5 * factor))
    none = save(tmp_path / "none.nii", volume(), pixdim=np.zeros(8))
    assert open_stack(none).spacing_mm is None


def test_a_header_that_contradicts_itself_tells_no_spacing(tmp_path: Path) -> None:
    """The matrix is the only one that tells the place, and its steps are not those of pixdim."""
    for code, expected in ((1, None), (2, None), (4, (1.0, 1.0))):
        image = nibabel.Nifti1Image(volume(), None)
        image.set_sform(np.diag([0.5, 0.7, 2, 1]), code)
        nibabel.save(image, tmp_path / "s.nii")
        assert open_stack(tmp_path / "s.nii").spacing_mm == expected, code
        image.header.set_zooms((0.5, 0.7, 2))
        nibabel.save(image, tmp_path / "s.nii")
        assert open_stack(tmp_path / "s.nii").spacing_mm == pytest.approx((0.7, 0.5))


@pytest.mark.parametrize(("turn", "known"), [(90, True), (89.9, True), (60, False)])
def test_rows_and_columns_askew_tell_no_spacing(tmp_path: Path, turn: float, known: bool) -> None:
    """At 60 degrees a pixel of 0.5 x 0.5 mm covers 0.22 mm2, not 0.25."""
    affine = np.diag([0.5, 0.5, 2, 1])
    affine[:2, 1] = 0.5 * np.cos(np.radians(turn)), 0.5 * np.sin(np.radians(turn))
    image = nibabel.Nifti1Image(volume(), affine)  # pixdim are the columns' lengths
    image.set_qform(None, 0)
    image.set_sform(affine, 1)
    nibabel.save(image, tmp_path / "s.nii")
    spacing = open_stack(tmp_path / "s.nii").spacing_mm
    assert spacing == (pytest.approx((0.5, 0.5)) if known else None)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("codes", [(2, 1), (0, 1), (1, 0), (0, 0)])
@pytest.mark.parametrize(("name", "endianness"), [("a.nii", "<"), ("a.nii.gz", ">")])
def test_what_is_written_lies_where_the_input_lies_byte_for_byte(
    tmp_path: Path, kind: Any, codes: tuple[int, int], name: str, endianness: str
) -> None:
    path = save(tmp_path / name, volume(), kind=kind, codes=codes, endianness=endianness)
    stack = open_stack(path)
    assert isinstance(stack, NiftiStack)
    labels = RNG.integers(0, 3, (4, 10, 12)).astype(np.uint8)
    content = nifti_bytes(stack, labels, description="made")
    assert content == nifti_bytes(open_stack(path), labels, description="made")  # type: ignore[arg-type]
    (tmp_path / f"out_{name}").write_bytes(content)
    before, after = nibabel.load(path), nibabel.load(tmp_path / f"out_{name}")
    assert after.affine.tobytes() == before.affine.tobytes()
    for key in PLACES:
        assert after.header[key].tobytes() == before.header[key].tobytes(), key
    np.testing.assert_array_equal(np.asarray(after.dataobj), labels.transpose(2, 1, 0))
    np.testing.assert_array_equal(read_mask(tmp_path / f"out_{name}", 2), labels[2])
    plain = gzip.decompress(content) if name.endswith("gz") else content
    assert b"Doering" not in plain
    assert b"made" in plain


def placed(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mask_that_lies_in_the_patient_as_its_image_but_not_in_the_file_is_refused(
    tmp_path: Path, axis: int
) -> None:
    """The same mask with an axis stored backwards, as other programs do, would be read mirrored."""
    scan, truth = volume(dtype=np.uint8), volume(dtype=np.uint8) % 2
    placed(tmp_path / "images" / "a.nii", scan, AFFINE)
    placed(tmp_path / "masks" / "a.nii", truth, AFFINE)
    (case, *_) = open_dataset(tmp_path).cases
    np.testing.assert_array_equal(case.read_masks()[0], truth[:, :, 0].T)

    mirrored = AFFINE.copy()
    mirrored[:, axis] *= -1
    mirrored[:, 3] += AFFINE[:, axis] * (truth.shape[axis] - 1)
    other = nibabel.Nifti1Image(np.flip(truth, axis), mirrored)
    np.testing.assert_array_equal(
        nibabel.as_closest_canonical(other).dataobj, truth, err_msg="in the patient it is the same"
    )
    nibabel.save(other, tmp_path / "masks" / "a.nii")
    (case, *_) = open_dataset(tmp_path).cases
    with pytest.raises(InputRejected, match=r"a\.nii must lie as its image does"):
        case.read_masks()
    assert any("must lie as its image" in str(problem) for problem in check_data(tmp_path).problems)

    for unsaid in (np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0])):  # of programs that know no place
        placed(tmp_path / "masks" / "a.nii", truth, unsaid)
        (case, *_) = open_dataset(tmp_path).cases
        np.testing.assert_array_equal(case.read_masks()[0], truth[:, :, 0].T)


def header_with(path: Path, **fields: Any) -> bytes:
    """A file whose header claims what is not so."""
    content = bytearray(save(path, volume()).read_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    for key, value in fields.items():
        header[key] = value
    return header.binaryblock + bytes(content[348:])


def test_bombs_and_damage_are_refused_with_a_message(tmp_path: Path) -> None:
    cases: dict[str, tuple[bytes, str]] = {
        "empty": (b"", "damaged|0 bytes"),
        "text": (b"no volume" * 100, "must be a NIfTI file"),
        "wide": (header_with(tmp_path / "w.nii", dim=[3, 30000, 30000, 1, 1, 1, 1, 1]), "at most"),
        "deep": (header_with(tmp_path / "d.nii", dim=[3, 2000, 2000, 30000, 1, 1, 1, 1]), "pixels in all"),
        "none": (header_with(tmp_path / "n.nii", dim=[3, 12, 0, 4, 1, 1, 1, 1]), "must hold an image"),
        "minus": (header_with(tmp_path / "m.nii", dim=[3, 12, -5, 4, 1, 1, 1, 1]), "NIfTI|hold an image"),
        "time": (header_with(tmp_path / "t.nii", dim=[4, 12, 10, 2, 2, 1, 1, 1]), "two or three dimensions"),
        "none said": (header_with(tmp_path / "z.nii", vox_offset=0), "voxels at byte"),
        "in the header": (header_with(tmp_path / "h.nii", vox_offset=348), "voxels at byte"),
        "far": (header_with(tmp_path / "f.nii", vox_offset=2**31), "voxels at byte"),
        "type": (header_with(tmp_path / "y.nii", datatype=1792), "numbers or RGB"),
    }
    for name, (content, message) in cases.items():
        for suffix, body in ((".nii", content), (".nii.gz", gzip.compress(content))):
            path = tmp_path / f"bad_{name}{suffix}"
            path.write_bytes(body)
            with pytest.raises(InputRejected, match=message):
                open_stack(path)
    good = save(tmp_path / "good.nii.gz", volume((64, 64, 4)))
    for keep in (400, good.stat().st_size // 2):
        cut = tmp_path / f"cut{keep}.nii.gz"
        cut.write_bytes(good.read_bytes()[:keep])
        with pytest.raises(InputRejected, match=r"cut short|damaged"):
            open_stack(cut).image(3)
    with pytest.raises(InputRejected, match=r"does not exist|cannot be read"):
        open_stack(tmp_path / "missing.nii")


def test_a_small_file_of_a_million_images_is_refused(tmp_path: Path) -> None:
    """Each would be a call of the network; 4 kB on disk."""
    deep = nibabel.Nifti2Image(np.zeros((1, 1, 1_000_000), np.uint8), np.eye(4))
    nibabel.save(deep, tmp_path / "deep.nii.gz")
    with pytest.raises(InputRejected, match="must hold at most 16384 images, not 1000000"):
        open_stack(tmp_path / "deep.nii.gz")


def test_damage_that_only_the_checksum_tells_is_told(tmp_path: Path) -> None:
    plain = save(tmp_path / "a.nii", volume()).read_bytes()
    packed = bytearray(gzip.compress(plain, 0))  # stored, so that every byte can be read whatever it is
    place = packed.index(plain[400:500])
    packed[place] ^= 16
    path = tmp_path / "a.nii.gz"
    path.write_bytes(packed)
    for content in (None, bytes(packed)):
        stack = open_stack(path, content)
        for index in range(len(stack) - 1):
            stack.image(index)
        with pytest.raises(InputRejected, match="damaged"):
            stack.image(len(stack) - 1)
    path.write_bytes(gzip.compress(plain + bytes(1 << 27)))
    with pytest.raises(InputRejected, match="damaged"):
        open_stack(path).image(3)


@pytest.mark.parametrize(("name", "packed"), [("a.nii", True), ("a.nii.gz", False)])
def test_what_is_written_is_packed_as_its_name_says(tmp_path: Path, name: str, packed: bool) -> None:
    """Viewers go by the name, whatever the input was; the input is read either way."""
    values = volume()
    plain = save(tmp_path / "plain.nii", values).read_bytes()
    path = tmp_path / name
    path.write_bytes(gzip.compress(plain) if packed else plain)
    for content in (None, path.read_bytes()):  # as training opens it, and as inference does
        stack = open_stack(path, content)
        for index in range(4):
            np.testing.assert_array_equal(stack.image(index), values[:, :, index].T)
    assert isinstance(stack, NiftiStack)
    path.write_bytes(nifti_bytes(stack, np.ones((4, 10, 12), np.uint8), description="made"))
    assert (np.asarray(nibabel.load(path).dataobj) == 1).all()


def test_a_volume_in_a_data_folder_is_a_group_whose_slices_are_cases(tmp_path: Path) -> None:
    """Images and masks alike; a picture beside them is a case of its own."""
    scans = {name: volume() for name in ("a", "b")}
    for name, values in scans.items():
        placed(tmp_path / "images" / f"{name}.nii.gz", values, AFFINE)
    masks = RNG.integers(0, 2, SHAPE).astype(np.uint8)
    placed(tmp_path / "masks" / "a.nii", masks, AFFINE)
    (tmp_path / "images" / "c.png").parent.mkdir(exist_ok=True)
    write_mask(tmp_path / "images" / "c.png", np.zeros((9, 9), np.uint8))
    write_mask(tmp_path / "masks" / "c.png", np.eye(9, dtype=np.uint8))
    dataset = open_dataset(tmp_path)
    assert [case.id for case in dataset.cases] == [f"{n}_000{k}" for n in "ab" for k in range(4)] + ["c"]
    assert [case.group for case in dataset.cases] == ["a"] * 4 + ["b"] * 4 + ["c"]
    assert [case.labelled for case in dataset.cases] == [True] * 4 + [False] * 4 + [True]
    for index, case in enumerate(dataset.cases[:4]):
        np.testing.assert_array_equal(case.read_image(), scans["a"][:, :, index].T)
        np.testing.assert_array_equal(case.read_masks()[0], masks[:, :, index].T == 1)
    report = check_data(tmp_path)
    assert (report.readable, report.labelled, report.groups) == (9, 5, 3)
    before = dataset.fingerprint()
    placed(tmp_path / "masks" / "a.nii", 1 - masks, AFFINE)
    assert open_dataset(tmp_path).fingerprint() != before


def test_masks_of_another_number_of_slices_or_of_fractions_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.nii", volume())
    save(tmp_path / "masks" / "a.nii", volume((12, 10, 3), np.uint8))
    with pytest.raises(InputRejected, match="4 slices, it has 3"):
        open_dataset(tmp_path)
    save(tmp_path / "f.nii", RNG.random((12, 10)).astype(np.float32))
    with pytest.raises(InputRejected, match="whole class number"):
        read_mask(tmp_path / "f.nii")
    save(tmp_path / "g.nii", np.full((12, 10), 2, np.float32))
    assert (read_mask(tmp_path / "g.nii") == 2).all()
    with pytest.raises(InputRejected, match="must hold one image, not 4"):
        read_image(tmp_path / "images" / "a.nii")


def test_a_scan_is_hashed_once_and_not_for_each_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 9, 5), np.uint8), np.eye(4)), tmp_path / "images" / "a.nii")
    cases = open_dataset(tmp_path).cases
    hashed: list[Path] = []
    for module in ("samdistill.evaluation", "samdistill.train.run"):
        monkeypatch.setattr(f"{module}.sha256_file", lambda path: hashed.append(path) or "0" * 64)
    assert len(cases) == 5
    assert unseen(cases, ["1" * 16]) == ()  # none is labelled
    run = MagicMock()
    run.cases.return_value = {"train_labelled": cases[:3], "train_unlabelled": [], "validation": cases[3:]}
    assert Run.provenance(run)["trained_on"] == ["0" * 16]
    assert hashed == [cases[0].image_path] * 2
