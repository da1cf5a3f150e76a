"""Atomic files, locks that die with their process, and checksummed files of arrays with a JSON card.

This package alone decides which paths may be written, and what may be read. No pickle is ever read.
"""

from symmetrax._files._arrays import ArrayFile, check_card, load_arrays, open_arrays, save_arrays
from symmetrax._files._layout import (
    Layout,
    check_finite_arrays,
    check_layout,
    is_key,
    layout_of,
    named_arrays,
    restore,
)
from symmetrax._files._locks import alone_in
from symmetrax._files._paths import check_writable
from symmetrax._files._writing import write_atomic

__all__ = [
    "ArrayFile",
    "Layout",
    "alone_in",
    "check_card",
    "check_finite_arrays",
    "check_layout",
    "check_writable",
    "is_key",
    "layout_of",
    "load_arrays",
    "named_arrays",
    "open_arrays",
    "restore",
    "save_arrays",
    "write_atomic",
]
