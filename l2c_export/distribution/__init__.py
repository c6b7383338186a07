"""Artefacts to and from registries: a blob for every file, by the hash that the manifest has of it."""
