"""Waits inside a model's unit (ExecStartPost=) until the server is ready: its exit ends the start job.

Standard library only, and nothing else of ours, since it is run inside the model's sandbox with an empty environment, or
with the model's where that holds the server's key, and cortexd may be dead or hidden: see `__main__.py`.
"""
