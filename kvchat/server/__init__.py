"""HTTP for other programs, over one backend. Sees of the backends their interface alone; nothing but this room knows starlette."""
