"""Turn raw files into packed columns, and packed columns into batches.

`sets/` reads the public data sets, `decode/` reads single files, `packing/` writes packs,
`loading/` makes batches. It imports `config`, `host` and `console`. `model`, `engine`, `inference`
and the command `pack` import it.
"""
