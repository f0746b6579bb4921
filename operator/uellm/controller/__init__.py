"""The operator's process: watches mark services dirty, a queue works them off, a lease keeps a second one out."""
