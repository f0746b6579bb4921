"""Shared by tests of several directories: sizes, models, documents, scheduler fixtures."""
