"""Waits inside a model's unit (ExecStartPost=) until the server is ready: its exit ends the start job.

Standard library only, and nothing else of ours, since it is run with an empty environment inside the model's sandbox,
where cortexd may be dead or hidden: see `__main__.py`.
"""
