"""`python -m transfusion.cli`: the same as `transfusion`."""

from transfusion.cli import main

main()
