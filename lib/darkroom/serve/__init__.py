"""A service that restores pictures over HTTP: `python -m darkroom.serve --run BASE`.

Pictures and numbers come in, a PNG goes out: no path from a request is ever opened, nothing is
unpickled, and every cost a request can cause has a limit (`limits.Limits`).
"""
