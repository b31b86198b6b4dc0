"""Few labels in, a small deployable segmenter out.

Importing this package loads neither torch nor numba nor an inference engine; each is loaded by the part
that needs it.
"""

import os
import sys

from samdistill._version import __version__

__all__ = ["__version__"]

# Nothing leaves the machine. ONNX Runtime's and OpenVINO's wheels would tell their makers of each session,
# and keep a number of the machine in the home folder; both look here when they are first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
