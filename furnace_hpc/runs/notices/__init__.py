"""Notifications to a webhook: keep one for each submission, and send it once."""
