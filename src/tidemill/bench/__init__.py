"""How fast a package answers in a process, and a server over its connections: `package`, `server`."""
