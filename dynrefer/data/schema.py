"""The former name of records.py, record_files.py, arrow.py and dynrefer/files.py; it goes with the next version."""

from dynrefer.data.arrow import ArrowRecords, is_table, read_rows, save_arrow, save_tables
from dynrefer.data.record_files import JoinedRecords, detector_file, open_records, write_records
from dynrefer.data.records import Region, RegionRecords, RegionResult, is_number, licences_of, record_root
from dynrefer.files import atomic_path, naming, parse_line, read_jsonl, read_lines

__all__ = [
    "ArrowRecords",
    "JoinedRecords",
    "Region",
    "RegionRecords",
    "RegionResult",
    "atomic_path",
    "detector_file",
    "is_number",
    "is_table",
    "licences_of",
    "naming",
    "open_records",
    "parse_line",
    "read_jsonl",
    "read_lines",
    "read_rows",
    "record_root",
    "save_arrow",
    "save_tables",
    "write_records",
]
