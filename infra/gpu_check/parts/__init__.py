"""What is checked, a file a part; every check is a generator of rows."""
