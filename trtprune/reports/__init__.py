"""What reports of every kind are made of: tables, figures, durations, and the state of the terminal they go to."""
