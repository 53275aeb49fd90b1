"""What happened, as data: records, run folders, calibration."""
