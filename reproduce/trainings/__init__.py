"""The trainings of the project, each decided to the last setting."""
