"""`osrm report`: many results beside each other."""
