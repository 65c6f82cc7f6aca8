"""Turn finished runs into conclusions: tables, reports and figures.

`statistics/` computes, `output/` writes files, and the modules here decide which runs count. It
imports `runs`, `config` and `host`. Commands and `api` import it.
"""
