"""The server: packages in, answers out over HTTP. The transport is one thin module; all else is plain functions of requests."""
