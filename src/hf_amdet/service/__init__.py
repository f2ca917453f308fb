"""Scanning by itself: webhook, queue, workers and fleets (needs the `service` extra)."""
