"""The server: one port, a queue on disk, and a worker process that draws. The server's own process imports no torch."""
