"""Overlays and single-file HTML reports: what a person looks at. Knows no model and no file format."""
