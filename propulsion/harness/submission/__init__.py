"""Prediction files for the GLUE and SuperGLUE servers, from the kept weights of finished runs.

choose.py which runs, predict.py their answers, formats.py the servers' files, majority.py answers of tasks that were
not run, write.py the zip and its manifest.
"""

from propulsion.harness.submission.choose import Request
from propulsion.harness.submission.formats import SUITES, Target
from propulsion.harness.submission.write import Submission, submit

__all__ = ["SUITES", "Request", "Submission", "Target", "submit"]
