"""The program: systemd runs this file as ExecStartPost= (`python -I -S FILE …`, with an empty environment, or
one without what could change the interpreter).

Ends with status 0 when the server is ready or the unit is being stopped, and with status 1 and the reason on standard
error when the main process is gone, a stranger answers on the port, loading the model failed, nothing moves any more,
or the time is up. systemd itself would not notice the main process's death before this program ends (measured on 252
and 257).

Kept short: Python compiles the file that it is told to run anew each time, and keeps the other ones compiled.
"""

import os
import sys

if not __package__:
    # As a file, it is no part of a package. Nothing is added to sys.path: whatever lies beside cortexd, in
    # site-packages say, cannot take the place of a module of the standard library.
    _parent = type(sys)("cortexd")
    _parent.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]  # noqa: PTH100, PTH120
    sys.modules["cortexd"] = _parent

from cortexd.waiter.program import main

if __name__ == "__main__":
    sys.exit(main())
