"""Run folders on disk: reading, writing, and a timeline for Perfetto."""
