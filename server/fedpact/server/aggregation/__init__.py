"""How adapters are aggregated, one file per method."""
