"""The measurements of the paper, on the models that the trainings give."""
