"""Compilation with numba and a disk cache. Damaged cache files and full or read-only disks are tolerated.

numba stores compiled functions as pickles beside the sources. If such a file is damaged, numba's own cache
raises an error at every start. The cache in this module replaces damaged files, and logs a warning if it
cannot write a file.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numba
from numba.core.caching import FunctionCache

logger = logging.getLogger(__name__)


class SafeCache(FunctionCache):
    """A cache of compiled functions. If a function cannot be read from the cache, it is compiled again."""

    def load_overload(self, signature: object, target_context: object) -> object | None:
        """Return the compiled function, or None if it is not in the cache or cannot be read."""
        try:
            return super().load_overload(signature, target_context)
        except Exception as error:  # Unpickling a damaged file raises errors of many types.
            _warn_once(f"numba's cache {self._folder()} is damaged and is replaced ({type(error).__name__})")
            with suppress(OSError):
                Path(self._cache_file._index_path).unlink()
            return None

    def save_overload(self, signature: object, data: object) -> None:
        """Store a compiled function in the cache. If that fails, log a warning."""
        try:
            super().save_overload(signature, data)
        except Exception as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            _warn_once(f"numba's cache {self._folder()} is not written: {reason}; every start compiles again")

    def _folder(self) -> str:
        return str(self.cache_path)


def kernel(function: Callable) -> Callable:
    """Compile a function in nopython mode. The result releases the GIL and is cached on the disk."""
    compiled = numba.njit(nogil=True)(function)
    try:
        compiled._cache = SafeCache(function)
    except RuntimeError as error:
        # numba raises this error if no cache folder is writable.
        _warn_once(f"numba has no cache: {error}; every start compiles again")
    return compiled


@cache
def _warn_once(message: str) -> None:
    logger.warning("warning: %s", message)
