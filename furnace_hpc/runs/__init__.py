"""What happened: the run folder, its attempts, records and state. Imports nothing heavy."""
