"""What the steps of a job do, in a worker's process."""
