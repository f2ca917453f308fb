"""What a scan found, as data (`schema`) and as pages (`markdown`, `plots`)."""
