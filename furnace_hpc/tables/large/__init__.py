"""What keeps tables of thousands of rows fast: results that are kept, and rows that are chosen."""
