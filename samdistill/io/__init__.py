"""Files <-> arrays: pictures, masks, data folders."""

from samdistill.io.images import image_size, read_image, read_mask, write_mask, write_png

__all__ = ["image_size", "read_image", "read_mask", "write_mask", "write_png"]
