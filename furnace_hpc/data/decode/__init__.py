"""Decode single files: images, sounds, text."""
