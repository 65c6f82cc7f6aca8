"""Open the sources of a table: files of rows, folders of media, and tar shards."""
