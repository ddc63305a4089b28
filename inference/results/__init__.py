"""One base for results, one printer of tables, one finding: the form of all that is returned."""
