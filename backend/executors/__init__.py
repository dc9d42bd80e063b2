"""Where the steps of a job run, one module for each kind of place."""
