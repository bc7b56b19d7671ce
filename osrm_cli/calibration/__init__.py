"""`osrm calibrate`: map the merged representation back to the single adapter's, inside each head."""
