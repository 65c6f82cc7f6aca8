"""`furnace publish`: a folder for a hub or a repository.

It joins the exported model of one run with the table of its grid, writes a model card and
checksums, and removes what is private. It imports `inference` inside functions.
"""
