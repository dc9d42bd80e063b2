"""Jobs: recipes that run as a row in a table and a folder on the disk, whoever looks or reloads."""
