"""The command line; `app.py` holds the table of commands, every other file one of them."""
