"""`uellm ...`: one file a command; `main` finds them."""
