"""The trainings of the project: each a function that returns a fully resolved plan."""
