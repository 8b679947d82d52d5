"""`python -m train`: `vafer train`, as torchrun starts it in several processes."""

import sys

from vafer.cli import main

sys.argv.insert(1, "train")
main()
