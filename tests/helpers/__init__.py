"""What tests of several directories share: sizes, models, documents, set-ups of the scheduler."""
