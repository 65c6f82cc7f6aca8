"""A user's own code, named by import paths such as `my_package.net:MyNet`.

`references.py` has the form of import paths, and finds them in a config. `sources.py` reads the
files of a grid's key `code`. `static_check.py` checks references without importing anything.
`loading.py` imports what they name, and `arguments.py` checks the values for its parameters.
"""
