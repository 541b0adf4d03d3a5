"""The table of what a job has set aside: in which file and row, which field, and why."""

import pyarrow as pa

QUARANTINE_FILE = "quarantine.parquet"
QUARANTINE = pa.schema(
    [
        ("data_set", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("field", pa.string()),
        ("reason", pa.string()),
    ]
)
"""Rows count from 1; null: the file is no file of rows."""
