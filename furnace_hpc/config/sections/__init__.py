"""Sections of a run's config, one subject per file. `config/train_config.py` puts them together."""
