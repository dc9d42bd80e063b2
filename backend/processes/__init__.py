"""Where a job's processes run: on this machine, for now in `local`."""
