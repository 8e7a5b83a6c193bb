"""Studies beside the paper: a conversion against the clock, and what landmark keys could be used for."""
