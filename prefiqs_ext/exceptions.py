"""What the package raises. Each is a PrefiqsError, and also the built-in exception that its kind usually is."""

from __future__ import annotations


class PrefiqsError(Exception):
    """The base of every error that the package raises on purpose.

    Its message is one line: what was expected, what was given, and what to do. Any other exception is a fault of the
    package.
    """


class InputError(PrefiqsError, ValueError):
    """An argument, an image or an option that is not what was expected."""


class InputTypeError(InputError, TypeError):
    """An argument of another type than was expected."""


class FileAccessError(PrefiqsError, OSError):
    """A file or folder that cannot be read or written."""


class MissingFileError(FileAccessError, FileNotFoundError):
    """A file that is not there."""


class FileFormatError(PrefiqsError, ValueError):
    """A file whose content is not what was expected, is damaged, or would do harm."""


class UnsupportedNetworkError(PrefiqsError, ValueError):
    """A network that cannot be run as a pair, or that does not take the preset's images."""


class MissingWeightsError(PrefiqsError, OSError):
    """Weights are not in the cache folder and cannot be fetched."""


class MissingPackageError(PrefiqsError, ImportError):
    """An optional package that is not installed."""


class NotFittedError(PrefiqsError, ValueError):
    """A method that is asked for scores before it was fitted."""


class OutOfMemoryError(PrefiqsError, MemoryError):
    """Too little memory on the device; names a smaller chunk to try, where there is one."""


class WorkerError(PrefiqsError, OSError):
    """Processes that read files do not start, or die and no file is to blame."""
