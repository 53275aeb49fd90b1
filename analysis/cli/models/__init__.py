"""Commands that run models: record, validate, compare, demo, pair train."""
