"""What functions return: one base for results, one printer of tables, one finding."""
