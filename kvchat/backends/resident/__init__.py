"""One engine for all of a user's terminals: the client's side loads no torch, the engine's side is a process of its own."""
