"""Files <-> arrays: pictures, masks, data folders."""

from samdistill.io.dataset import Case, Dataset, open_dataset
from samdistill.io.images import image_size, write_mask, write_png
from samdistill.io.splits import Split, make_split
from samdistill.io.stack import open_stack, read_image, read_mask

__all__ = [
    "Case",
    "Dataset",
    "Split",
    "image_size",
    "make_split",
    "open_dataset",
    "open_stack",
    "read_image",
    "read_mask",
    "write_mask",
    "write_png",
]
