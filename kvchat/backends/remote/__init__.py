"""A model that another machine, or another program, serves over HTTP: turns in, events out, no torch in this process."""
