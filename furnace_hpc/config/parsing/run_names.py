"""Parts of the names of runs, for commands that load no configuration."""

TRIAL = "~"  # between row and number in the name of a trial. No row's name contains it
