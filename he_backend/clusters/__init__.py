"""Encrypted runs on a cluster of Dask: its workers evaluate, the key holder stays outside."""
