"""What each notebook can be told."""
