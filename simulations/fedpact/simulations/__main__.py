"""`python -m fedpact.simulations` is `fedpact`."""

from fedpact.simulations.cli import main

main()
