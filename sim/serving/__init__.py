"""Serving: many requests on replicas, with a queue, a step plan, a memory for keys and values, draft and verification as events."""
