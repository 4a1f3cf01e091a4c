"""Prefect tasks: thin wrappers that call ``tsvlib`` and hand back small models (digest, size), never tensors."""
