"""`osrm eval`: score a merged folder beside its single adapters."""
