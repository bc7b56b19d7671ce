"""`osrm eval`: score a merged folder and its single adapters."""
