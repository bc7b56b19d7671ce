"""How others do the same, each a program of its own: an osrm command is a whole process, so is its peer."""
