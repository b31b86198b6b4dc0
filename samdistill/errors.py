"""The exceptions samdistill raises, each with the exit code its command line ends with.

Messages say what was wrong and what to do: `<argument> must be <contract>, not <actual>. <cure>`. Wrong
arguments of a Python function are plain ValueError or TypeError; what is wrong with the world (a file, a
bundle, a device) is one of these. The library raises and never exits.
"""


class SamdistillError(Exception):
    """Base of all; an internal error when it is raised itself."""

    exit_code = 1


class UsageError(SamdistillError):
    """A command or configuration that cannot be carried out as it stands."""

    exit_code = 2


class SomeInputsFailed(SamdistillError):
    """Some of several inputs failed; the others were done."""

    exit_code = 3


class InputRejected(SamdistillError):
    """An input (image, mask, data set, run) that cannot be used, or all of several."""

    exit_code = 4


class BundleError(SamdistillError):
    """A bundle whose files do not match its manifest, or whose golden cases do not come out."""

    exit_code = 5


class DeviceUnavailable(SamdistillError):
    """A device, engine, provider or library that was asked for and cannot be had."""

    exit_code = 6
