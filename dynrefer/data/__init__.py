"""Records, samples and batches. Import the dataset and the loader from their modules: they bring torch with them."""

from dynrefer.data.schema import Region, RegionRecords, RegionResult, open_records, save_arrow, write_records

__all__ = ["Region", "RegionRecords", "RegionResult", "open_records", "save_arrow", "write_records"]
