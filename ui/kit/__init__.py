"""What pages are built of: no word of the product is in it."""
