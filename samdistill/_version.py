"""The one version, read by Python, by the build and, through CMake, by C++."""

__version__ = "0.1.0"
