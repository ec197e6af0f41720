"""`fedpact.v1`: the control plane's protocol, and the code that `make proto` generates of it."""
