"""What the command line can do: a module a group, each yielding lines of stdout. Nothing else imports these."""
