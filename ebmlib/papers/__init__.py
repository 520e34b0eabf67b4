"""What belongs to one paper: a module each."""
