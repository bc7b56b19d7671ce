"""`osrm convert`: adapters from one program's files to another's."""
