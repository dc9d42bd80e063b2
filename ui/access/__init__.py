"""Who may send what to the page, and how long they may take."""
