"""The web page in front of the scan pipeline (needs the `ui` extra)."""
