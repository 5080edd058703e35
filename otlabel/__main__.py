"""`python -m otlabel` is the command `otlabel`."""

import sys

from otlabel.commands.main import main

sys.exit(main())
