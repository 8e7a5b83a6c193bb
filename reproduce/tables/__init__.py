"""Tables, plots and verdicts, made of measurements."""
