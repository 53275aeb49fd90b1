"""Serving: requests in queues, batches that share a step and a memory, draft and verification as events."""
