"""Child processes: started, heard and ended, with all that they start."""
