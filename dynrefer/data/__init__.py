"""Records, samples and batches. Import the dataset and the loader from their modules: they bring torch with them."""

from dynrefer.data.arrow import save_arrow
from dynrefer.data.record_files import open_records, write_records
from dynrefer.data.records import Region, RegionRecords, RegionResult

__all__ = ["Region", "RegionRecords", "RegionResult", "open_records", "save_arrow", "write_records"]
