"""The paper's experiments at the scale of `landmark.recipes.small`: which trainings there are, and what is measured."""
