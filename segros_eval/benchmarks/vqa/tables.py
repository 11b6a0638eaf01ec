"""Tables that hold pictures: parquet files by `datasets`, and records of a TSV with pictures in base64."""

from __future__ import annotations

import ast
import csv
import functools
import sys
from pathlib import Path
from typing import Any

__all__ = ["cell_pictures", "parquet_table", "read_record"]


@functools.lru_cache(maxsize=4)
def parquet_table(files: tuple[Path, ...]) -> Any:
    """Return parquet files as one Arrow table on disk, pictures not decoded.

    Args:
        files: In order.
    """
    import datasets

    datasets.disable_progress_bars()
    names = [str(path) for path in files]
    return datasets.load_dataset("parquet", data_files={"rows": names}, split="rows").data


def read_record(data: bytes) -> list[str]:
    """Return the cells of one record of a TSV."""
    csv.field_size_limit(sys.maxsize)
    return next(csv.reader(data.decode("utf-8").splitlines(keepends=True), delimiter="\t"))


def cell_pictures(cell: str) -> list[str]:
    """Return the pictures of a TSV cell: one in base64, or the text of a list of them."""
    return list(ast.literal_eval(cell)) if cell.startswith("[") else [cell]
