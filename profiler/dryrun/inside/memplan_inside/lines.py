"""Whose line of Python asks: the user's own, or the library's where no file of the user's is on the stack (a
program that is started by `-m`).
"""

import os
import sys

_OURS = (os.path.dirname(os.path.abspath(__file__)), "<frozen", "<string>", "<eval")
_INSTALLED = ("site-packages", "dist-packages")


def of_user(path):
    """Whether a file is the user's own: not the standard library, not an installed package, not ours."""
    return not (
        path.startswith(_OURS)
        or any(place in path for place in _INSTALLED)
        or "torchinductor_" in path
        or path.startswith((os.path.dirname(os.__file__), "<"))
    )


def user_line():
    """'file:line function' of the innermost frame in the user's own code, empty where there is none."""
    return _innermost(of_user)


def asking_line():
    """The same, or the innermost frame of an installed package but torch, 'package/file:line function'."""
    return _innermost(of_user) or _innermost(_of_library).rpartition("-packages/")[2]


def user_line_of(trace):
    """The user's own line of a traceback."""
    found = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if of_user(code.co_filename):
            found = f"{code.co_filename}:{trace.tb_lineno} {code.co_name}"
        trace = trace.tb_next
    return found


def _innermost(chosen):
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if chosen(path):
            return f"{path}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return ""


def _of_library(path):
    return any(f"{place}/" in path and f"{place}/torch/" not in path for place in _INSTALLED)
