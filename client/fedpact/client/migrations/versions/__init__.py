"""One file for each revision; never change one that was released."""
