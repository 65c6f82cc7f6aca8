"""data/decode/sound_files."""
