"""The parameters that each notebook takes, and their values at each preset."""
