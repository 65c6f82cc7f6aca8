"""The diagram of critical differences: its layout, as a figure and as a section of the report."""
