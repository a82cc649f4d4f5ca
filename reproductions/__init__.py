"""Reproductions of published single-spike methods, on the public face of `ssnn_plugin`."""
