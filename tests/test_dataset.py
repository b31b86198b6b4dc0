"""Data folders as cases: what mask values mean, groups, told splits, labels out of budget."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_infer_sources import forbid

from samdistill.errors import InputRejected
from samdistill.inference import gather
from samdistill.io import make_split, open_dataset, write_mask, write_png
from samdistill.io.dataset import fingerprint
from samdistill.io.layout import read_layout
from samdistill.train.pseudo_folder import find_images

SIZE = (12, 16)
Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Make a data folder of `images` pictures and `masks` (stem to pixels, or class to stem to pixels)."""

    def make(
        stems: list[str],
        masks: dict[str, object],
        *,
        toml: str | None = None,
        files: dict[str, str] | None = None,
    ) -> Path:
        root = tmp_path / "data"
        rng = np.random.default_rng(0)
        for stem in stems:
            path = root / "images" / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(path, rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        flat = {
            f"{key}/{stem}" if isinstance(value, dict) else key: pixels
            for key, value in masks.items()
            for stem, pixels in (value.items() if isinstance(value, dict) else [(key, value)])
        }
        for stem, pixels in flat.items():
            path = root / "masks" / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mask(path, np.asarray(pixels))
        if toml is not None:
            (root / "dataset.toml").write_text(toml)
        for name, text in (files or {}).items():
            (root / name).write_text(text)
        return root

    return make


def index_mask(*values: int) -> np.ndarray:
    """(12, 16) uint8: one column of each value, the rest 0."""
    mask = np.zeros(SIZE, np.uint8)
    for column, value in enumerate(values):
        mask[:, column] = value
    return mask


def columns(masks: np.ndarray) -> list[list[int]]:
    """For each channel the columns in which it is set."""
    return [np.flatnonzero(mask.all(axis=0)).tolist() for mask in masks]


# Cases ----------------------------------------------------------------------------------------------------


def test_images_meet_masks_of_their_stem_and_those_without_are_unlabelled(folder: Folder) -> None:
    root = folder(["b", "a", "c"], {"a": index_mask(1), "c": index_mask(1)})
    dataset = open_dataset(root)
    assert [case.id for case in dataset.cases] == ["a", "b", "c"]
    assert [case.id for case in dataset.unlabelled] == ["b"]
    assert dataset.cases[0].read_image().shape == (*SIZE, 3)
    assert columns(dataset.cases[0].read_masks()) == [[0]]
    with pytest.raises(ValueError, match="case b must be labelled"):
        dataset.cases[1].read_masks()


def test_folders_within_images_are_part_of_the_case_id(folder: Folder) -> None:
    root = folder(["p1/x", "p2/x"], {"p1/x": index_mask(1), "p2/x": index_mask(0, 1)})
    dataset = open_dataset(root)
    assert [case.id for case in dataset.cases] == ["p1/x", "p2/x"]
    assert not dataset.multi_label
    assert columns(dataset.cases[1].read_masks()) == [[1]]


def test_index_masks_give_one_channel_a_class(folder: Folder) -> None:
    root = folder(["a"], {"a": index_mask(2, 1, 0, 2)}, toml='classes = ["nerve", "vessel"]')
    dataset = open_dataset(root)
    assert dataset.class_names == ("nerve", "vessel")
    masks = dataset.cases[0].read_masks()
    assert masks.dtype == np.bool_
    assert masks.shape == (2, *SIZE)
    assert columns(masks) == [[1], [0, 3]]


def test_black_and_white_masks_are_one_class_when_nothing_is_declared(folder: Folder) -> None:
    root = folder(["a", "b"], {"a": index_mask(255), "b": index_mask(0)})
    dataset = open_dataset(root)
    assert dataset.class_names == ("foreground",)
    assert columns(dataset.cases[0].read_masks()) == [[0]]
    assert columns(dataset.cases[1].read_masks()) == [[]]


def test_undeclared_classes_are_counted_by_the_highest_value(folder: Folder) -> None:
    root = folder(["a", "b"], {"a": index_mask(1), "b": index_mask(3)})
    assert open_dataset(root).class_names == ("class_1", "class_2", "class_3")
    unread = open_dataset(root, infer_classes=False)
    assert unread.class_names == ()
    with pytest.raises(ValueError, match="with_classes"):
        unread.cases[0].read_masks()


def test_grey_levels_are_not_taken_for_class_numbers(folder: Folder) -> None:
    root = folder(["a"], {"a": index_mask(128, 255)})
    with pytest.raises(InputRejected, match=r"a\.png holds the value 255.*class_values"):
        open_dataset(root)


def test_numbers_of_objects_are_not_taken_for_class_numbers(folder: Folder) -> None:
    objects = np.arange(np.prod(SIZE), dtype=np.uint8).reshape(SIZE)
    objects[objects > 21] = 0
    root = folder(["a"], {"a": objects})
    with pytest.raises(InputRejected, match=r"a\.png holds the value 21, .* Object \(instance\) numbers\?"):
        open_dataset(root)
    objects += 8 * (objects > 0).astype(np.uint8)
    write_mask(root / "masks" / "a.png", objects)
    (case,) = open_dataset(root, class_names=[f"c{number}" for number in range(1, 9)]).cases
    with pytest.raises(
        InputRejected, match=r"8 c8, not 9\. Object \(instance\) numbers\?.* Name every class"
    ):
        case.read_masks()
    (case,) = open_dataset(root, class_names=[f"c{number}" for number in range(1, 28)]).cases
    with pytest.raises(InputRejected, match=r"8 c8 and 19 more, not 28\. Name every class"):
        case.read_masks()


def test_class_values_name_the_grey_levels(folder: Folder) -> None:
    toml = 'classes = ["disc", "cup"]\nclass_values = [128, 255]'
    dataset = open_dataset(folder(["a"], {"a": index_mask(128, 255)}, toml=toml))
    assert columns(dataset.cases[0].read_masks()) == [[0], [1]]


def test_a_mask_threshold_makes_grey_masks_binary(folder: Folder) -> None:
    dataset = open_dataset(folder(["a"], {"a": index_mask(3, 127, 128, 250)}, toml="mask_threshold = 127"))
    assert dataset.class_names == ("foreground",)
    assert dataset.mask_threshold == 127
    assert columns(dataset.cases[0].read_masks()) == [[2, 3]]


def test_ignored_pixels_are_in_no_class_and_told_apart(folder: Folder) -> None:
    toml = 'classes = ["x"]\nignore_index = 255'
    dataset = open_dataset(folder(["a"], {"a": index_mask(1, 255)}, toml=toml))
    masks, ignored = dataset.cases[0].read_labels()
    assert dataset.ignore_index == 255
    assert columns(masks) == [[0]]
    assert columns(ignored[None]) == [[1]]


def test_what_one_class_file_ignores_is_ignored_in_all(folder: Folder) -> None:
    masks = {"heart": {"a": index_mask(9, 255)}, "lung": {"a": index_mask(255, 255, 255)}}
    dataset = open_dataset(folder(["a"], masks, toml="ignore_index = 9"))
    read, ignored = dataset.cases[0].read_labels()
    assert columns(read) == [[1], [1, 2]]
    assert columns(ignored[None]) == [[0]]


def test_a_class_out_of_range_names_file_and_value(folder: Folder) -> None:
    dataset = open_dataset(folder(["a"], {"a": index_mask(1, 7)}, toml='classes = ["x", "y"]'))
    with pytest.raises(InputRejected, match=r"masks/a\.png must hold .*1 x, 2 y, not 7\..*classes"):
        dataset.cases[0].read_masks()


def test_a_mask_of_another_size_names_both_sizes(folder: Folder) -> None:
    dataset = open_dataset(folder(["a"], {"a": np.zeros((16, 12), np.uint8)}, toml='classes = ["x"]'))
    with pytest.raises(InputRejected, match=r"masks/a\.png must have .* 16 x 12, not 12 x 16"):
        dataset.cases[0].read_masks()


def test_folders_of_classes_hold_masks_that_overlap(folder: Folder) -> None:
    root = folder(
        ["a", "b"],
        {"heart": {"a": index_mask(255, 255)}, "lung": {"a": index_mask(0, 255, 255), "b": index_mask(255)}},
    )
    dataset = open_dataset(root)
    assert dataset.multi_label
    assert dataset.class_names == ("heart", "lung")
    assert columns(dataset.cases[0].read_masks()) == [[0, 1], [1, 2]]
    assert columns(dataset.cases[1].read_masks()) == [[], [0]]


def test_declared_classes_give_the_folders_their_order(folder: Folder) -> None:
    masks = {"heart": {"a": index_mask(1)}, "lung": {"a": index_mask(0, 1)}}
    dataset = open_dataset(folder(["a"], masks, toml='classes = ["lung", "heart"]'))
    assert columns(dataset.cases[0].read_masks()) == [[1], [0]]


def test_a_class_file_with_two_greys_wants_a_threshold(folder: Folder) -> None:
    root = folder(["a"], {"heart": {"a": index_mask(3, 250)}})
    with pytest.raises(InputRejected, match=r"not 3 and 250.*mask_threshold"):
        open_dataset(root).cases[0].read_masks()
    (root / "dataset.toml").write_text("mask_threshold = 100")
    assert columns(open_dataset(root).cases[0].read_masks()) == [[1]]


def test_the_classes_of_a_bundle_stand_in_or_must_agree(folder: Folder) -> None:
    root = folder(["a"], {"a": index_mask(0, 1)})
    assert open_dataset(root, class_names=["polyp", "other"]).class_names == ("polyp", "other")
    (root / "dataset.toml").write_text('classes = ["lung"]')
    with pytest.raises(InputRejected, match="must have the classes polyp, not lung"):
        open_dataset(root, class_names=["polyp"])


def test_cases_travel_to_worker_processes(folder: Folder) -> None:
    case = open_dataset(folder(["a"], {"a": index_mask(1)})).cases[0]
    assert pickle.loads(pickle.dumps(case)) == case


# What is wrong with a folder ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "toml, message",
    [
        ("class = 1", "unknown key 'class'"),
        ("classes = 3", "classes must be a list"),
        ("classes = [", "not valid TOML"),
        ('classes = ["a", "a"]', "distinct"),
        ('classes = ["a/b"]', "a folder can bear"),
        (f'classes = ["{65 * "a"}"]', "a folder can bear"),
        ('classes = ["Cyst", "cyst"]', "distinct names, case aside"),
        ('classes = ["a"]\nclass_values = [1, 2]', "one value a class"),
        ('classes = ["a"]\nclass_values = [0]', "distinct and not 0"),
        ("ignore_index = 0", "ignore_index must differ"),
        ('group_pattern = "("', "regular expression"),
        ('classes = ["a"]\nclass_values = [9]\nmask_threshold = 3', "must not both"),
        ('[table]\nfil = "x.csv"', "unknown key 'fil'"),
        ("[table]", "file"),
        ('[split]\ntrain = "a"', "split.train must be a list"),
    ],
)
def test_a_dataset_toml_that_cannot_be_meant_is_refused(folder: Folder, toml: str, message: str) -> None:
    root = folder(["a"], {"a": index_mask(1)}, toml=toml)
    with pytest.raises(InputRejected, match=message) as caught:
        open_dataset(root)
    assert str(root) in str(caught.value)


def test_files_that_windows_saved_are_read_or_the_encoding_is_named(folder: Folder) -> None:
    toml = 'classes = ["läsion"]\n[table]\nfile = "cases.csv"\ngroup = "patient"\n'
    root = folder(["a", "b"], {"a": index_mask(1)})
    for name, text in (("dataset.toml", toml), ("cases.csv", "case,patient\na,Ö\nb,Ö\n")):
        (root / name).write_text(text, encoding="utf-8-sig")
    dataset = open_dataset(root)
    assert (dataset.class_names, dataset.cases[0].group) == (("läsion",), "Ö")
    (root / "cases.csv").write_text("case,patient\na,Ö\nb,Ö\n", encoding="latin-1")
    with pytest.raises(InputRejected, match=r"cases\.csv: line 2 must be UTF-8 .* Save the file as UTF-8\."):
        open_dataset(root)
    (root / "dataset.toml").write_text(toml, encoding="latin-1")
    with pytest.raises(InputRejected, match=r"dataset\.toml: line 1 must be UTF-8 .* as UTF-8\.$"):
        open_dataset(root)


def test_names_that_unicode_spells_in_two_ways_are_refused_and_told_apart(folder: Folder) -> None:
    """As a Mac writes them and as anybody else does: to the eye both are "café"."""
    root = folder(["b", "caf\u00e9"], {"b": index_mask(1), "cafe\u0301": index_mask(1)})
    differ = r"1 name\(s\) differ from .* first is 'cafe\\u0301', its image 'caf\\xe9'.*convmv"
    with pytest.raises(InputRejected, match=f"masks: {differ}"):
        open_dataset(root)
    assert len(read_layout(root).problems) == 1
    shutil.rmtree(root / "masks")
    (root / "dataset.toml").write_text('[table]\nfile = "cases.csv"\nsplit = "part"')
    (root / "cases.csv").write_text("case,part\nb,train\ncafe\u0301,test\n")
    with pytest.raises(InputRejected, match=rf"cases\.csv: {differ}"):
        open_dataset(root)


@pytest.mark.parametrize("names", [["a:b"], ["a "], [65 * "a"], ["Cyst", "cyst"]])
def test_class_folders_that_no_bundle_could_name_are_refused_before_training(
    folder: Folder, names: list[str]
) -> None:
    root = folder(["a"], {name: {"a": index_mask(1)} for name in names})
    with pytest.raises(InputRejected, match=r"classes cannot be called so.*Rename it"):
        open_dataset(root)


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="is no folder"):
        open_dataset(tmp_path / "nothing")
    with pytest.raises(InputRejected, match="images/"):
        open_dataset(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(InputRejected, match="no image"):
        open_dataset(tmp_path)


def test_two_images_of_one_stem_are_refused(folder: Folder) -> None:
    root = folder(["a"], {})
    shutil.copy(root / "images" / "a.png", root / "images" / "a.bmp")
    with pytest.raises(InputRejected, match=r"images/a\.png: images/a\.bmp has the same stem"):
        open_dataset(root)


def test_masks_named_otherwise_than_their_images_are_refused_when_none_fits(folder: Folder) -> None:
    with pytest.raises(InputRejected, match=r"no mask has the name of an image.*a_mask"):
        open_dataset(folder(["a"], {"a_mask": index_mask(1)}))


def test_hidden_files_and_other_types_are_passed_over(folder: Folder) -> None:
    root = folder(["a"], {"a": index_mask(1)}, files={"images/Thumbs.db": "", "images/._a.png": "x"})
    assert [case.id for case in open_dataset(root).cases] == ["a"]


@pytest.mark.parametrize("target", ["images", "nowhere"])
def test_a_link_that_is_not_followed_is_refused_rather_than_passed_over(
    folder: Folder, tmp_path: Path, target: str
) -> None:
    root = folder(["a"], {"a": index_mask(1)})
    (tmp_path / "linked" / "images").mkdir(parents=True)
    shutil.copy(root / "images" / "a.png", tmp_path / "linked" / "images")
    (tmp_path / "linked" / "images" / "site.png").symlink_to(root / target)
    with pytest.raises(InputRejected, match=r"images/site\.png: it is a link"):
        open_dataset(tmp_path / "linked")
    if target == "images":
        (found,) = [one for one in gather([str(tmp_path / "linked")], tmp_path / "out") if one.problem]
        assert found.relative.name == "site.png"
    with pytest.raises(InputRejected, match="is a link"):
        find_images(tmp_path / "linked" / "images", tmp_path / "out")


def test_a_folder_of_masks_that_cannot_be_listed_leaves_no_case_out(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(["a/1", "b/2"], {"a/1": index_mask(1), "b/2": index_mask(1)})
    forbid("masks/b", monkeypatch)
    with pytest.raises(InputRejected, match=r"masks/b: it cannot be read: Permission denied"):
        open_dataset(root)
    with pytest.raises(InputRejected, match=r"masks/b cannot be read: Permission denied"):
        find_images(root / "masks", root / "out")


def test_names_that_are_no_text_have_a_fingerprint_and_a_place_in_the_split(folder: Folder) -> None:
    names = [os.fsdecode(b"M\xfcller"), *"abcdef"]
    dataset = open_dataset(folder(names, {name: index_mask(1) for name in names}))
    assert len(dataset.fingerprint()) == 64
    assert len(make_split(dataset, seed=0).train_labelled) > 0


def test_what_pseudo_label_wrote_among_its_images_is_no_input(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = folder(["a"], {}) / "images"
    shutil.copytree(images, images / "out" / "images")
    monkeypatch.chdir(tmp_path)
    _, cases = find_images(images.relative_to(tmp_path), images / "out")
    assert [case.id for case in cases] == ["a"]


def test_pictures_beside_a_folder_called_images_are_labelled_too(folder: Folder) -> None:
    root = folder(["a"], {})
    shutil.copy(root / "images" / "a.png", root / "b.png")
    base, cases = find_images(root, root / "out")
    assert (base, [case.id for case in cases]) == (root, ["b", "images/a"])


def test_a_class_whose_value_is_ignored_is_refused(folder: Folder) -> None:
    masks = {"a": index_mask(1, 2)}
    with pytest.raises(InputRejected, match="is the value of the class 'b'"):
        open_dataset(folder(["a"], masks, toml='classes = ["a", "b"]\nignore_index = 2'))


def test_a_class_folder_that_is_not_declared_is_refused(folder: Folder) -> None:
    root = folder(["a"], {"lung": {"a": index_mask(1)}, "hart": {"a": index_mask(1)}})
    (root / "dataset.toml").write_text('classes = ["lung", "heart"]')
    with pytest.raises(InputRejected, match="'hart' is none of the classes"):
        open_dataset(root)


# Groups, tables, told splits ------------------------------------------------------------------------------


def test_groups_come_from_a_pattern(folder: Folder) -> None:
    root = folder(["p1_z0", "p1_z1", "p2_z0"], {}, toml="group_pattern = '^(p\\d+)_'")
    assert [case.group for case in open_dataset(root).cases] == ["p1", "p1", "p2"]
    (root / "dataset.toml").write_text("group_pattern = '^p1'")
    with pytest.raises(InputRejected, match="does not match 'p2_z0'"):
        open_dataset(root)


def test_groups_and_parts_come_from_a_table(folder: Folder) -> None:
    toml = '[table]\nfile = "cases.csv"\ncase = "file"\ngroup = "patient"\nsplit = "part"'
    table = "file,patient,part\na.png,7,test\nb,7,\nc,8,train\nelsewhere,9,train\n"
    root = folder(["a", "b", "c"], {}, toml=toml, files={"cases.csv": table})
    dataset = open_dataset(root)
    assert [case.group for case in dataset.cases] == ["7", "7", "8"]
    assert dataset.parts == {"a": "test", "c": "train"}
    (warned,) = read_layout(root).problems
    assert (warned.severity, "'elsewhere'" in warned.what) == ("warning", True)


@pytest.mark.parametrize(
    "table, message",
    [
        ("file,patient\na,1\n", "no column 'part'"),
        ("file,patient,part\na,1,\na,1,\nb,1,\n", "2 rows name 'a'"),
        ("file,patient,part\na,1,dev\nb,1,\n", "the split 'dev'"),
        ("file,patient,part\na,1,\n", "1 image.* have no row.*'b'"),
        ("file,patient,part\na,1,train\nb,1,test\n", "cuts through the group '1'"),
        ("file,patient,part\nimages/a,1,test\n", r"1 row\(s\) name no image; the first is 'images/a'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(folder: Folder, table: str, message: str) -> None:
    toml = '[table]\nfile = "cases.csv"\ncase = "file"\ngroup = "patient"\nsplit = "part"'
    with pytest.raises(InputRejected, match=message):
        open_dataset(folder(["a", "b"], {}, toml=toml, files={"cases.csv": table}))


def test_a_split_by_patterns_is_kept(folder: Folder) -> None:
    stems = [f"{part}/{n}" for part in ("train", "held") for n in range(10)]
    toml = '[split]\ntest = ["held/*"]'
    root = folder(stems, {stem: index_mask(1) for stem in stems}, toml=toml)
    split = make_split(open_dataset(root), seed=3)
    assert [case.id for case in split.test] == [f"held/{n}" for n in range(10)]
    assert split.budget == 10


@pytest.mark.parametrize(
    "toml, message",
    [
        ('[split]\ntest = ["z*"]', "'z\\*' matches no case"),
        ('[split]\ntest = ["a"]\ntrain = ["*"]', "puts it in train and in test"),
        ('group_pattern = \'^.\'\n[split]\ntest = ["a1"]\ntrain = ["a2"]', "cuts through the group 'a'"),
    ],
)
def test_a_told_split_that_contradicts_itself_is_refused(folder: Folder, toml: str, message: str) -> None:
    with pytest.raises(InputRejected, match=message):
        open_dataset(folder(["a", "a1", "a2"], {}, toml=toml))


# Labels out of budget -------------------------------------------------------------------------------------


def test_nothing_of_a_split_depends_on_labels_out_of_budget(folder: Folder) -> None:
    """Unlabelled-part masks are replaced by garbage: split, class names and fingerprint stay the same."""
    stems = [f"{n:02}" for n in range(30)]
    root = folder(stems, {stem: index_mask(1 + int(stem) % 2) for stem in stems})
    before = make_split(open_dataset(root, infer_classes=False), seed=0, labels=8)
    fingerprint_before = before.fingerprint()
    for case in before.train_unlabelled:
        (root / "masks" / f"{case.id}.png").write_bytes(b"garbage")
    after = make_split(open_dataset(root, infer_classes=False), seed=0, labels=8)
    assert after == before
    assert after.fingerprint() == fingerprint_before
    assert after.class_names == ("class_1", "class_2")


def test_the_fingerprint_sees_pixels_names_groups_and_classes_but_not_the_place(folder: Folder) -> None:
    root = folder(["a", "b"], {"a": index_mask(1)}, toml='classes = ["x"]')
    original = open_dataset(root).fingerprint()
    moved = root.with_name("moved")
    shutil.copytree(root, moved)
    assert open_dataset(moved).fingerprint() == original

    def changed(change: Callable[[Path], object]) -> str:
        copy = root.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(root, copy)
        change(copy)
        return open_dataset(copy).fingerprint()

    different = [
        changed(lambda r: write_png(r / "images" / "a.png", np.zeros((*SIZE, 3), np.uint8))),
        changed(lambda r: write_mask(r / "masks" / "a.png", index_mask(0, 1))),
        changed(lambda r: (r / "masks" / "a.png").unlink()),
        changed(lambda r: (r / "images" / "b.png").rename(r / "images" / "c.png")),
        changed(lambda r: (r / "dataset.toml").write_text('classes = ["y"]')),
        changed(lambda r: (r / "dataset.toml").write_text("classes = ['x']\ngroup_pattern = ''")),
    ]
    assert len({original, *different}) == 6
    assert fingerprint(open_dataset(root).cases, ["x"]) == original


@pytest.mark.data
def test_the_development_sets_open_and_split(data_root: Path) -> None:
    """Real folders: every set opens, its first masks decode, 10 % of the labels split."""
    for name, classes in (("polyps", 1), ("nerves", 2), ("nuclei", 1), ("fetal_head", 1), ("atrium", 1)):
        dataset = open_dataset(data_root / name)
        assert len(dataset.class_names) == classes
        split = make_split(dataset, labels=0.1)
        case = split.train_labelled[0]
        assert case.read_masks().shape == (classes, *case.read_image().shape[:2])
