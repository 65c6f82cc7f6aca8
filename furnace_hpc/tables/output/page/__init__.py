"""The parts of `report.html`: its sections, the data of its scripts, scripts and style."""
