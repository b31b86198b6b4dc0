"""Few labels in, a small deployable segmenter out.

Importing this package loads neither torch nor numba nor an inference engine; each is loaded by the part
that needs it.
"""

from samdistill._version import __version__

__all__ = ["__version__"]
