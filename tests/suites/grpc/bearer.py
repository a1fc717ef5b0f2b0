#!/usr/bin/env python3
"""Prints a bearer token. Usage: bearer.py SECRET [SUBJECT]"""

import sys

from contract import token

print(token(sys.argv[1], **({"sub": sys.argv[2]} if sys.argv[2:] else {})))
