"""The face: HTTP routes, the status page, and the commands `submit` and `overnight`."""
