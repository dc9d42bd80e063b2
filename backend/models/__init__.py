"""Models: what one is before it is loaded, which are taken, and how one is fetched and loaded."""
