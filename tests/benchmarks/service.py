"""The application that uvicorn serves: the configuration and the application are named by the environment."""

from __future__ import annotations

import os

from tests.benchmarks import setups
from tests.benchmarks.apps import APPLICATIONS
from tests.benchmarks.processes import subject_of

_subject = subject_of(os.environ)
app = getattr(setups, _subject.configuration.setup)(APPLICATIONS[_subject.application].make).app
