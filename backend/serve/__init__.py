"""Chat servers in child processes, and the client that streams from them."""
