"""What coordinator and sites must agree on, to the bit."""
