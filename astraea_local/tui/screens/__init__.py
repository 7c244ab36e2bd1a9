"""What fills the terminal: the overview, and what is opened from it."""
