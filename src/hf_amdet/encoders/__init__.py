"""Text towers behind one interface (`base`), loaded from verified local files (`loading`)."""
