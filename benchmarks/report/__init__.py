"""Tables, figures and verdicts from raw records."""
