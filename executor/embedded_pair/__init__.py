"""The embedded draft/target pair: real models, trained on Python's standard library, that need no download."""
