"""The command line: one file per command; `main` lists them."""
