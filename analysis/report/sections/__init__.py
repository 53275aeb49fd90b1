"""The sections of a report, a file each: from an arm's data to elements."""
